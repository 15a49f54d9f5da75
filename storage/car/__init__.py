"""CAR: many blocks in one file or stream, versions 1 and 2. Read, checked and written as they pass by."""

from storage.car.export import Plan, car_parts, export_file, plan_export
from storage.car.importer import Imported, RootFound, import_car
from storage.car.reader import CarReader, Section, verified

__all__ = [
    "CarReader",
    "Imported",
    "Plan",
    "RootFound",
    "Section",
    "car_parts",
    "export_file",
    "import_car",
    "plan_export",
    "verified",
]
