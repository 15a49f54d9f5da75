"""What storage can fail with. Each docstring is what the user reads, and says what to do next."""


class StorageError(Exception):
    """Storage failed."""


class InvalidCid(StorageError, ValueError):
    """That is not a CID. Copy it again, whole: it begins with Qm, bafy, bafk or another multibase letter."""


class InvalidBlock(StorageError, ValueError):
    """The bytes of a block do not follow its codec. Fetch it again from another peer."""


class NotAFile(InvalidBlock):
    """That has no bytes to read. See what is in it with `covey ls CID`, or write it out with `covey get CID`."""


class NotAFolder(InvalidBlock):
    """There are no names in that to list. Read it with `covey cat CID`, or write it out with `covey get CID`."""


class NotUnixfs(InvalidBlock):
    """That is no content to read. See its value: `covey dag get CID`. If it is sealed, open it: `covey unseal CID`."""


class UnknownCodec(StorageError):
    """The block has a codec that this Covey cannot read: its links are unknown. Pin it directly, or upgrade Covey."""


class NotFound(StorageError, KeyError):
    """The block is not in this store. Fetch it with `covey get CID`."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else self.__class__.__name__


class NoSuchName(NotFound):
    """The folder is here, and that name is not in it. See the names that it has with `covey ls CID`."""


class Corrupt(StorageError):
    """The store, its index or the catalog is damaged. Check the disk; restore the home from a backup."""


class CorruptBlock(Corrupt):
    """A stored block no longer matches its CID: the disk changed it. Fetch it again; check the disk."""


class BlocksDamaged(Corrupt):
    """Blocks are damaged: check the disk. Fetch them again with `covey repo verify --repair`, or restore a backup."""


class TooLarge(StorageError):
    """A block, name or document is over its size limit."""


class StoreLocked(StorageError):
    """Another process has this store open. Stop it with `covey down`, or choose another COVEY_HOME."""


class StoreFull(StorageError):
    """The disk is full; reads still work. Drop what nothing keeps with `covey repo gc`, or free some space."""


class OverQuota(StoreFull):
    """The store's quota is used up: run `covey repo gc`, unpin what is not needed, or raise it (`storage.quota_gb`)."""


class DiskFull(StorageError):
    """The disk has no room for it. Free some space, or some of the store's: `covey repo stat`, then `covey repo gc`."""


class CannotCollect(StorageError):
    """Nothing was collected: what is below a pin cannot be walked. Run `covey repo verify --repair`, or unpin it."""


class UnknownVersion(StorageError):
    """The store was written by a newer Covey. Upgrade Covey, or choose another COVEY_HOME."""


class InvalidCar(StorageError, ValueError):
    """That is no CAR, or one that is damaged or cut short. Get the file again, or have it made anew."""

    def __init__(self, text: str, at: int = 0) -> None:
        """`at` is the offset of the byte from which on it is wrong."""
        super().__init__(f"byte {at}: {text}")
        self.at = at


class InvalidOption(StorageError, ValueError):
    """That is no way to add content. Choose one of those named, or leave the option away."""


class SpecialFile(StorageError):
    """Pipes, sockets and devices are not kept. Move it away and try again; to keep what a pipe gives: `covey add -`."""


class InvalidName(StorageError, ValueError):
    """A file name in the content is not safe to write ("", ".", "..", "/", NUL). The content is refused."""


class InvalidText(StorageError, ValueError):
    """What a user calls something, or says of it, cannot be kept as it is."""


class UnsafeLink(InvalidName):
    """The folder holds a symlink that leads out of it, so nothing of it is written. Its other files can be read one by
    one: covey ls CID; covey cat CID/NAME > FILE.
    """


class TargetExists(StorageError):
    """There is a file of that name already, and nothing is overwritten. Choose another name, or move it away."""


class NotARecipient(StorageError):
    """The content is sealed to others. Ask who sealed it to add you: `covey sealed add CID PEER`, with your peer id."""


class BrokenSeal(StorageError, ValueError):
    """Sealed content was altered, or made by a program that errs: no more of it is opened. Ask its maker for it."""


class NotSealed(BrokenSeal):
    """The content is not sealed. To get it as it is: covey get CID."""


class UnknownSeal(StorageError):
    """The content was sealed in a way that this Covey does not know. Upgrade Covey."""


class BadRecipient(StorageError, ValueError):
    """Nothing can be sealed to that key. Ask the peer for the output of `covey id`: 12D3KooW..."""
