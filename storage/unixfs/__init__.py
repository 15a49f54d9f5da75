"""Files and directories as blocks (UnixFS), with the CIDs that `ipfs add` gives."""

from storage.unixfs.directory import DirEntry, list_dir, resolve
from storage.unixfs.exporter import FileStat, export, missing, read_file, stat
from storage.unixfs.importer import Keep, add_bytes, add_path, add_stream, cid_of_path
from storage.unixfs.profiles import COVEY_WEIGHTS, PROFILES, UNIXFS_V0_2015, UNIXFS_V1_2025, Profile, profile_of

__all__ = [
    "COVEY_WEIGHTS",
    "PROFILES",
    "UNIXFS_V0_2015",
    "UNIXFS_V1_2025",
    "DirEntry",
    "FileStat",
    "Keep",
    "Profile",
    "add_bytes",
    "add_path",
    "add_stream",
    "cid_of_path",
    "export",
    "list_dir",
    "missing",
    "profile_of",
    "read_file",
    "resolve",
    "stat",
]
