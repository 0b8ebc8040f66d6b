"""Whole images read for evaluation, by several processes that leave out the same ones."""

import numpy as np

from fs4_jax import distributed
from fs4_jax.data.images import UnreadableImage
from fs4_jax.data.views import resize_image


class WholeImages:
    """Reads a source's images; one that any process can not read is left out, or raised, by all.

    Args:
      source: see `data.sources.make_source`. with_labels: False leaves labels unread.
      on_unreadable: "raise" raises UnreadableImage; "skip" leaves the image out.
      left_out: a list that takes (name, reason) of each image left out.
      process_index, process_count: this process among those that read.
    """

    def __init__(self, source, *, with_labels, on_unreadable, left_out, process_index,
                 process_count):
        if on_unreadable not in ("raise", "skip"):
            raise ValueError(f"on_unreadable is {on_unreadable!r}; choose raise or skip")
        self._source, self._with_labels, self._left_out = source, with_labels, left_out
        self._raises = on_unreadable == "raise"
        self._process, self._processes = process_index, process_count

    def sizes(self, pool):
        """Yields (index, (height, width)) of every image; each process opens its share of them."""
        number = len(self._source)
        mine = pool.map(self._size, range(self._process, number, self._processes))
        if self._processes == 1:
            for i, size in mine:
                if isinstance(size, UnreadableImage):
                    self._leave_out(i, size)
                else:
                    yield i, size
            return
        table = np.full((-(-number // self._processes), 2), -1, np.int32)
        for i, size in mine:
            if not isinstance(size, UnreadableImage):
                table[i // self._processes] = size
        table = distributed.gather(table).swapaxes(0, 1).reshape(-1, 2)[:number]
        for i, size in enumerate(table.tolist()):
            if size[0] < 0:
                self._leave_out(i, self._size(i)[1])
            else:
                yield i, tuple(size)

    def load(self, i, shape):
        """(i, what it takes of a batch: (image resized to shape, own size, label or None), or an
        UnreadableImage)."""
        try:
            example = self._source[i] if self._with_labels else {"image": image_of(self._source, i)}
        except UnreadableImage as error:
            return i, error
        image, label = example["image"], example.get("label")
        # Not the whole example: a batch of full photographs would fill the memory.
        return i, (resize_image(image, shape), (image if label is None else label).shape[:2], label)

    def agreed(self, results, shape, rows):
        """Sorts out the answers of `load` for this process's part of a batch.

        Args:
          results: of `load`. shape: theirs. rows: of the part, the same in each process.

        Returns:
          (those that could be read, how many all processes have, the largest own size).
        """
        loaded = [pair for pair in results if not isinstance(pair[1], UnreadableImage)]
        failed = dict(pair for pair in results if isinstance(pair[1], UnreadableImage))
        number = len(loaded)
        largest = np.max([size for _, (_, size, _) in loaded] or [(1, 1)], axis=0)
        if self._processes > 1:
            here = np.full(rows + 3, -1, np.int32)
            here[:len(failed)], here[rows], here[rows + 1:] = list(failed), number, largest
            all_of_them = distributed.gather(here)
            number, largest = all_of_them[:, rows].sum(), all_of_them[:, rows + 1:].max(0)
            elsewhere = [int(i) for i in all_of_them[:, :rows].ravel() if i >= 0]
            failed = {i: failed[i] if i in failed else self.load(i, shape)[1] for i in elsewhere}
        for i, reason in failed.items():
            self._leave_out(i, reason)
        return loaded, number, largest

    def _size(self, i):
        try:
            return i, self._source.size(i)
        except UnreadableImage as error:
            return i, error

    def _leave_out(self, i, reason):
        name = self._source.example_name(i)
        if not isinstance(reason, UnreadableImage):      # this process reads it, another does not
            reason = UnreadableImage(f"{name}: another process can not read it")
        if self._raises:
            raise reason
        self._left_out.append((name, str(reason)))


def image_of(source, i, at_least=None):
    """Image i of a source; its label stays unread where the source knows how."""
    if hasattr(type(source), "image"):
        return source.image(i, at_least=at_least)
    return source[i]["image"]
