"""Looks at what a model found, in a browser: `python -m fs4_jax.view --workdir=W`.

Serves one page on 127.0.0.1: the images of the evaluation split, or of --images, with truth,
clusters and overlay. Clusters are renamed and merged with the mouse; names and merges are saved in
W/clusters.json and used by fs4_jax.predict and the report.
"""

from absl import app, flags


def main(argv):
    from fs4_jax.errors import command
    args = flags.FLAGS
    with command(argv):
        view(args.workdir, args.images, args.port)


def view(workdir, images="", port=8000):
    """Serves the page until Ctrl-C.

    Raises:
      ConfigError, DataError: no checkpoint, a model without classes, no images, a port in use.
    """
    from fs4_jax.viewer.server import LOOPBACK, make_server
    gallery = make_gallery(workdir, images)
    with make_server(gallery, port) as server:
        print(f"{len(gallery)} images: open http://{LOOPBACK}:{server.server_port} in a browser "
              "of this machine; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def make_gallery(workdir, images=""):
    """The Gallery of a workdir's newest checkpoint on its evaluation split, or on a folder."""
    from fs4_jax.data.folder import DataError, FolderSource
    from fs4_jax.data.sources import make_source
    from fs4_jax.segmenter import Segmenter
    from fs4_jax.viewer.gallery import Gallery, data_folders
    segmenter = Segmenter(workdir)
    data = segmenter.run.config.data
    try:
        source = FolderSource(images, key="images") if images else \
            make_source(data, "eval")
    except DataError as error:
        told = str(error).replace("config.images", "--images")
        raise DataError(told if images else f"{told}\nThe images that {workdir} was scored on are "
                        "not here; look at others with --images=DIR") from error
    return Gallery(segmenter, source, data_folders(data, images))


def define_flags():
    """The command's own: several commands may be imported into one process."""
    flags.DEFINE_string("workdir", None, "A workdir that fs4_jax.main trained in.")
    flags.DEFINE_string(
        "images", "", "Folder of images (jpg, png, webp, bmp) to look at; by default the split "
        "that the workdir is scored on.")
    flags.DEFINE_integer("port", 8000, "Port on 127.0.0.1; 0 takes a free one.",
                         lower_bound=0, upper_bound=65535)


if __name__ == "__main__":
    define_flags()
    flags.mark_flags_as_required(["workdir"])
    app.run(main)
