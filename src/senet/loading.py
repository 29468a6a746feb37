"""Batches of an image set in an epoch's order, by workers that are watched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .errors import UserError
from .image_sets import Batch, ImageSet
from .sampling import EpochSampler
from .watching import Watch, note_reading

__all__ = ["ImageLoader"]


class _Batches(Dataset[Batch]):
    """A set as the loader asks for it: whole batches, and errors as values.

    A worker's exception would arrive with the worker's traceback for a message; a value arrives
    as it was, and ``ImageLoader`` raises it.
    """

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Tensor | None:
        return self.images.labels

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        return self.images.batch([key])

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch | UserError:
        try:
            return self.images.batch(keys)
        except UserError as error:
            return error
        finally:
            note_reading(-1)


def _as_it_is(batch: Any) -> Any:
    return batch


class ImageLoader(DataLoader[Batch]):
    """Batches of an ``ImageSet`` in the order of an ``EpochSampler``.

    Args:
        images: The set.
        sampler: The order; ``loader.sampler.set_epoch(epoch)`` chooses the epoch.
        batch_size: Images a batch.
        workers: Processes that prepare batches; 0 prepares them in this one.
        drop_last: Leave an incomplete last batch out.
        timeout: Seconds that a batch may take to come from the workers; 0 is any number.
    """

    def __init__(
        self,
        images: ImageSet,
        sampler: EpochSampler,
        *,
        batch_size: int,
        workers: int = 0,
        drop_last: bool = False,
        timeout: float = 0.0,
    ) -> None:
        self._watch = Watch(images, workers) if workers else None
        super().__init__(
            _Batches(images),
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_as_it_is,
            drop_last=drop_last,
            timeout=timeout,
            worker_init_fn=self._watch.begin if self._watch is not None else None,
            persistent_workers=workers > 0,
            # One of its own: a draw from the global generator would shift the model's.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        fault: UserError | None = None
        batches: Any = None
        try:
            batches = super().__iter__()  # which waits for the workers of the epoch before
            if self._watch is not None:
                self._watch.processes = batches._workers
            for batch in batches:
                if isinstance(batch, UserError):
                    fault = UserError(*batch.args)
                    break
                yield batch
        except RuntimeError as error:
            if self._watch is None or (fault := self._watch.told(error, self.timeout)) is None:
                raise
        if fault is not None:
            # Let go of the workers now, and raise an error that does not hold their iterator:
            # collected as part of a cycle, they would take PyTorch ten seconds to end.
            del batches
            self._iterator = None
            if self._watch is not None:
                self._watch.end()
            raise fault
