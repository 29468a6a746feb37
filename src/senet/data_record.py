"""What a data set held when a run began, by which a resumed run knows it again."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DataRecord"]


@dataclass(frozen=True)
class DataRecord:
    """What a data set held when a run began, by which a resumed run knows it again.

    Args:
        classes: Names by label.
        train: How many training images.
        val: How many held out.
        files: `senet.folders.fingerprint` of a folder, `ShardSplit.fingerprint` of shards; "" for
            the others, which do not change.
        mean, std: How images are normalised; None in records of versions that had one way only.
    """

    classes: tuple[str, ...]
    train: int
    val: int
    files: str = ""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def difference(self, now: DataRecord) -> str | None:
        """What is another in ``now``, in a line; None where nothing is."""
        if self.classes != now.classes:
            gone, new = (
                [name for name in ours if name not in theirs]
                for ours, theirs in ((self.classes, now.classes), (now.classes, self.classes))
            )
            changes = [
                f"{len(names)} {verb} ({', '.join(map(repr, names[:3]))}{', …' * (len(names) > 3)})"
                for verb, names in (("gone", gone), ("new", new))
                if names
            ]
            return f"its classes were others: {', '.join(changes) or 'in another order'}"
        counts = [
            f"{before:,} {what} images, now {after:,}"
            for what, before, after in (
                ("training", self.train, now.train),
                ("held-out", self.val, now.val),
            )
            if before != after
        ]
        if counts:
            return f"it had {' and '.join(counts)}"
        if self.files != now.files:
            return "as many images, but files were renamed, replaced or moved"
        return None
