"""Single image and mask files, read as arrays of pixels or told wrong by name."""

import io
import os

import numpy as np
from PIL import Image

# What a file is decoded as, whatever its suffix says; Pillow's other formats may run programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_ORIENTATION = 0x0112     # EXIF tag: 1 upright; 5 to 8 swap height and width
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
          4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
          6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}
_GREY_STEPS = {"L;2": 85, "L;4": 17}      # Pillow stretches 2- and 4-bit greys to 0..255


class DataError(ValueError):
    """Something about the data that the user can mend; the message names the file or key."""


class UnreadableImage(ValueError):
    """An image file that can not be read; the message names it and says why."""


def read_image(path, *, at_least=None):
    """An image file as uint8 [H, W, 3] RGB.

    EXIF rotation is applied; grey, palette and CMYK become RGB, transparency is laid over white,
    16-bit grey becomes 8-bit, an animation gives its first frame.

    Args:
      path: the file, or a `stored.StoredFile`.
      at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, several times as fast, while
        both sides keep so many pixels; None decodes it whole.

    Raises:
      UnreadableImage: missing, corrupt, truncated, or above Pillow's MAX_IMAGE_PIXELS (about 89
        million: a small file can hide a picture that fills the memory).
    """
    try:
        with _open(path) as image:
            turn = _TURNS.get(_orientation(image))
            if at_least:
                image.draft(None, (at_least, at_least))      # does nothing but for JPEG
            picture = _to_rgb(image)
            return np.asarray(picture if turn is None else picture.transpose(turn))
    except Exception as error:      # Pillow raises a dozen kinds for a file that is no image
        raise UnreadableImage(f"{path}: unreadable image ({reason_of(error, path)})") from error


def read_label(path):
    """A mask file as uint8 [H, W]: grey values or palette indices, as they are stored.

    Raises:
      DataError: missing or corrupt, a colour picture, or 16-bit ids above 255.
    """
    try:
        with _open(path) as image:
            mode = image.mode
            step = _GREY_STEPS.get(str(image.tile[0][3]), 1) if image.tile else 1
            label = np.asarray(image)
    except Exception as error:
        raise DataError(f"{path}: unreadable mask ({reason_of(error, path)})") from error
    if mode not in ("1", "L", "P") and not mode.startswith("I"):
        raise DataError(f"{path}: a mask of Pillow's mode {mode}; labels are 8-bit class ids, one "
                        "channel: the grey value or palette index of a pixel is its class")
    if label.size and label.max() > 255:
        raise DataError(f"{path}: id {label.max()} in a 16-bit mask; labels are 8-bit class ids, "
                        "0 to 254, and 255 for ignore")
    return label.astype(np.uint8) // np.uint8(step)


def image_size(path):
    """(height, width) from the header alone, EXIF rotation counted in; UnreadableImage."""
    try:
        with _open(path) as image:
            return image.size if _orientation(image) >= 5 else image.size[::-1]
    except Exception as error:
        raise UnreadableImage(f"{path}: unreadable image ({reason_of(error, path)})") from error


def label_size(path):
    """(height, width) of a mask from the header alone, as it is stored; DataError."""
    try:
        with _open(path) as label:
            return label.size[::-1]         # as it is stored: masks are never turned
    except Exception as error:
        raise DataError(f"{path}: unreadable mask ({reason_of(error, path)})") from error


def openable(path):
    """What decoders take: the path itself, or a stream of the bytes of a `stored.StoredFile`.

    Raises ValueError where there is nothing in it, OSError where it can not be read.
    """
    on_disk = isinstance(path, (str, os.PathLike))
    stream = path if on_disk else io.BytesIO(path.read_bytes())
    if not (os.path.getsize(path) if on_disk else stream.getbuffer().nbytes):
        raise ValueError("the file is empty")
    return stream


def _open(path):
    image = Image.open(openable(path), formats=_FORMATS)
    # Pillow only warns up to twice its limit, and warning filters are no thread's own.
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        size = f"{image.width} x {image.height}"
        image.close()
        raise Image.DecompressionBombError(
            f"{size} pixels, more than Pillow's safe {Image.MAX_IMAGE_PIXELS}")
    return image


def _orientation(image):
    """EXIF orientation 1..8; 1 where there is none, or none that can be parsed."""
    try:
        # The base class's: PngImageFile's would decode all the pixels to look for late chunks.
        orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
        return orientation if orientation in _TURNS else 1
    except Exception:     # a damaged tag is no reason to lose the picture
        return 1


def _to_rgb(image):
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        grey = np.clip((values + 128) // 257, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def reason_of(error, path):
    """What an exception says about a file, in words that do not name it again."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.replace(repr(str(path)), "the file").replace(str(path), "the file")
