"""Large images as overlapping tiles: where they lie, and how what is seen of them is blended."""

import numpy as np

from fs4_jax.data.views import resize_image


class Tiles:
    """The tiles of one image, each seen at the model's size; they overlap by half.

    The model answers on a grid of cells; tiles begin on cells of one grid for the whole image, so
    that answers are summed where they are, weighted by the distance from the tile's border.

    Args:
      image: uint8 [H, W, 3]. side: pixels of a tile, about: a cell has a whole number of them.
      seen: (h, w), the size at which the model sees a tile. cells: of the answer's side.
    """

    def __init__(self, image, side, seen, cells):
        self._image, self._seen, self._cells = image, seen, cells
        self._pitch = max(1, round(side / cells))               # pixels of a cell
        self._step = max(1, cells // 2)
        numbers = [1 + max(0, -(-(-(-length // self._pitch) - cells) // self._step))
                   for length in image.shape[:2]]
        self.grid = tuple((number - 1) * self._step + cells for number in numbers)
        self._corners = [(row * self._step, column * self._step)
                         for row in range(numbers[0]) for column in range(numbers[1])]
        self._sum, self._weight = None, np.zeros((*self.grid, 1), np.float32)

    def __len__(self):
        return len(self._corners)

    @property
    def extent(self):
        """Pixels that the whole grid spans, (height, width); no less than the image."""
        return tuple(length * self._pitch for length in self.grid)

    def __getitem__(self, i):
        """Tile i as the model sees it, uint8 [h, w, 3]; beyond the image its border repeats."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        pixels = np.arange(self._cells * self._pitch)
        places = [np.minimum(corner * self._pitch + pixels, length - 1)
                  for corner, length in zip(self._corners[i], self._image.shape)]
        return resize_image(self._image[np.ix_(*places)], self._seen)

    def add(self, i, answer):
        """Takes the model's answer float [cells, cells, k] to tile i."""
        if self._sum is None:
            self._sum = np.zeros((*self.grid, answer.shape[-1]), np.float32)
        ramp = np.minimum(np.arange(self._cells) + 0.5, np.arange(self._cells)[::-1] + 0.5)
        weight = (ramp[:, None] * ramp[None, :])[..., None].astype(np.float32)
        row, column = self._corners[i]
        place = np.s_[row:row + self._cells, column:column + self._cells]
        self._sum[place] += weight * answer
        self._weight[place] += weight

    def blended(self):
        """The answer for the whole image, float32 [*grid, k]."""
        return self._sum / self._weight
