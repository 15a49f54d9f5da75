"""Where a node keeps its things: one folder, $COVEY_HOME, readable by its owner alone."""

import hashlib
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from daemon.errors import BadHome

HOME_VARIABLE: Final = "COVEY_HOME"
# sun_path holds 108 bytes on Linux and 104 on macOS and the BSDs, the closing NUL included.
MAX_SOCKET_PATH_BYTES: Final = 107 if sys.platform.startswith("linux") else 103


@dataclass(frozen=True, slots=True)
class Home:
    """The places inside a home folder."""

    root: Path

    @property
    def config(self) -> Path:
        """Settings, TOML."""
        return self.root / "config.toml"

    @property
    def key(self) -> Path:
        """The identity's seed, 0600."""
        return self.root / "identity.key"

    @property
    def flock_key(self) -> Path:
        """The key of the private flock that this node is in, 0600; Kubo's name and form. None there: the open one."""
        return self.root / "swarm.key"

    @property
    def lock(self) -> Path:
        """Locked while a daemon runs; holds its process id."""
        return self.root / "daemon.lock"

    @property
    def logs(self) -> Path:
        """The folder of the logs."""
        return self.root / "logs"

    @property
    def log(self) -> Path:
        """The log, JSON lines."""
        return self.logs / "covey.log"

    @property
    def index(self) -> Path:
        """Where each block lies in the packs."""
        return self.root / "index.db"

    @property
    def catalog(self) -> Path:
        """Everything else that is worth a row: events, peers, pins, adapters."""
        return self.root / "catalog.db"

    @property
    def models(self) -> Path:
        """Imported base models, a folder each."""
        return self.root / "models"

    @property
    def adapters(self) -> Path:
        """Adapters as folders that the engine can read."""
        return self.root / "adapters"

    @property
    def training(self) -> Path:
        """Adapters that were trained here, a folder each."""
        return self.root / "training"

    @property
    def rounds(self) -> Path:
        """What is known of federated experiments, a file each; made with the first."""
        return self.root / "journal" / "rounds"

    @property
    def workspaces(self) -> Path:
        """The histories of workspaces, a file each; made with the first."""
        return self.root / "journal" / "workspaces"

    @property
    def agents(self) -> Path:
        """The declarations of the agents that are hosted here, a folder for each workspace; made with the first."""
        return self.root / "agents"

    @property
    def sealed_keys(self) -> Path:
        """Content keys that can be erased; made with the first."""
        return self.root / "sealed-keys"

    @property
    def openai_token(self) -> Path:
        """What opens the OpenAI-compatible face, 0600; made with its first use."""
        return self.root / "openai.token"

    @property
    def scratch(self) -> Path:
        """Files of the moment; emptied when a daemon starts."""
        return self.root / "scratch"

    @property
    def socket(self) -> Path:
        """The control socket: in the home, or where that path is too long for a socket, in a private short folder."""
        inside = self.root / "control.sock"
        if len(os.fsencode(inside)) <= MAX_SOCKET_PATH_BYTES:
            return inside
        name = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return _runtime_folder() / f"{name}.sock"


def home_from(environment: "os._Environ[str] | dict[str, str]", platform: str = sys.platform) -> Home:
    """The home that the environment names, or the platform's default. Raises: BadHome."""
    named = environment.get(HOME_VARIABLE)
    if named:
        return Home(Path(os.path.abspath(os.path.expanduser(named))))
    user = environment.get("HOME")
    if not user:
        raise BadHome(f"neither {HOME_VARIABLE} nor HOME is set")
    if platform == "darwin":
        return Home(Path(user, "Library", "Application Support", "covey"))
    return Home(Path(environment.get("XDG_DATA_HOME") or Path(user, ".local", "share"), "covey"))


def make_home(home: Home) -> None:
    """Make the folders that are missing, 0700. Raises: BadHome when the home is another's or open to others."""
    private_folder(home.root)
    for folder in (home.logs, home.models, home.adapters, home.training, home.scratch):
        private_folder(folder)
    if home.socket.parent != home.root:
        private_folder(home.socket.parent)


def private_folder(folder: Path) -> None:
    """Make `folder` for its owner alone, or check that it is so. Raises: BadHome."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _close_if_empty(folder)
        status = folder.lstat() if folder.is_symlink() else folder.stat()
    except OSError as error:
        raise BadHome(f"cannot use {folder}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise BadHome(f"{folder} is a symbolic link; name the folder itself")
    if status.st_uid != os.getuid():
        raise BadHome(f"{folder} belongs to another user (uid {status.st_uid})")
    if status.st_mode & 0o077:
        raise BadHome(f"{folder} is open to other users (mode {status.st_mode & 0o777:o}); run: chmod 700 {folder}")


def _close_if_empty(folder: Path) -> None:
    """A folder that the user just made for a home is open to others as a rule; it holds nothing yet."""
    status = folder.lstat()
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if is_own and status.st_mode & 0o077 and not any(folder.iterdir()):
        folder.chmod(0o700)


def _runtime_folder() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime, "covey")
    return Path("/tmp", f"covey-{os.getuid()}")  # noqa: S108 - `make_home` checks that it is ours and 0700
