"""What people call a model's clusters: names and merges, kept in the workdir as clusters.json.

    {"names": {"3": "sky"}, "merged": {"5": 3}}         cluster 5 is shown and written as cluster 3

`fs4_jax.view` writes it; `mask_classes` says what the ids of masks are under it.
"""

import dataclasses
import json
import pathlib

import numpy as np

from fs4_jax.config import ConfigError
from fs4_jax.evaluation.protocols import PROTOCOLS
from fs4_jax.whole_files import write_whole

FILE = "clusters.json"
LONGEST_NAME = 80       # letters


@dataclasses.dataclass(frozen=True)
class ClusterNames:
    """names: {cluster: name}. merged: {cluster: the cluster that it is shown as}, never a chain."""
    names: dict = dataclasses.field(default_factory=dict)
    merged: dict = dataclasses.field(default_factory=dict)

    def shown_as(self, num_clusters):
        """int [k]: the cluster that each is shown as, itself where it was not merged."""
        shown = np.arange(num_clusters)
        for cluster, into in self.merged.items():
            shown[cluster] = into
        return shown

    def to_json(self):
        """The file's text, the same for the same names."""
        return json.dumps({kind: {str(k): value for k, value in sorted(told.items())}
                           for kind, told in dataclasses.asdict(self).items()}, indent=2) + "\n"


def check_cluster_names(content, num_clusters, where):
    """ClusterNames of what JSON gave; `where` it comes from, for messages.

    A cluster that was merged into a merged one goes where that one went.

    Raises:
      ConfigError: anything but {"names": {...}, "merged": {...}} of this model's clusters, an
        empty or long name, clusters merged in a circle.
    """
    def fail(reason):
        raise ConfigError(f"{where}: {reason}")

    def cluster(key):
        if not (isinstance(key, str) and key.isascii() and key.isdigit()
                and int(key) < num_clusters):
            fail(f"there is no cluster {key!r}; the model has 0 to {num_clusters - 1}")
        return int(key)

    if not isinstance(content, dict) or content.keys() - {"names", "merged"} or \
            any(not isinstance(told, dict) for told in content.values()):
        fail('must be {"names": {"3": "sky"}, "merged": {"5": 3}}')
    names, merged = {}, {}
    for key, name in content.get("names", {}).items():
        name = " ".join(name.split()) if isinstance(name, str) else ""
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            fail(f"cluster {key} needs a name of 1 to {LONGEST_NAME} letters")
        names[cluster(key)] = name
    for key, into in content.get("merged", {}).items():
        merged[cluster(key)] = cluster(str(into) if type(into) is int else into)
    for start in merged:
        end, seen = start, set()
        while end in merged:
            seen.add(end)
            end = merged[end]
            if end in seen:
                fail(f"cluster {start} is merged in a circle")
        merged[start] = end
    return ClusterNames(names, merged)


def read_cluster_names(workdir, num_clusters):
    """The ClusterNames of a workdir, none where nobody named any; ConfigError as above."""
    path = pathlib.Path(workdir) / FILE
    if not path.exists():
        return ClusterNames()
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} can not be read ({error}): mend or remove it") from error
    return check_cluster_names(content, num_clusters, path)


def write_cluster_names(workdir, names):
    """Writes W/clusters.json, whole or not at all."""
    write_whole(pathlib.Path(workdir) / FILE, names.to_json())


@dataclasses.dataclass(frozen=True)
class MaskClasses:
    """What the ids of masks mean.

    ids: uint8 [k], the mask id of each cluster. names: of each mask id. meaning: where ids come
    from, a line for people.
    """
    ids: np.ndarray
    names: list
    meaning: str


def mask_classes(workdir, config, *, supervised, renamed=True):
    """The MaskClasses of a trained model: by its labels, its matching, and people's names.

    Where the workdir holds eval.json, its matching turns clusters into classes: ids below the
    number of classes are classes, the ones after them clusters that no class was left for. Merged
    clusters have the id of what they were merged into; ids are never given to others, so that
    colours stay.

    Args:
      workdir: of the training. config: its ConfigDict. supervised: whether the method's classes
        are the labels' own. renamed: False leaves W/clusters.json unread.

    Raises:
      ConfigError: a W/clusters.json that is none.
    """
    plain = _unnamed(workdir, config, supervised)
    told = read_cluster_names(workdir, config.num_clusters) if renamed else ClusterNames()
    if not told.names and not told.merged:
        return plain
    shown, names = told.shown_as(config.num_clusters), list(plain.names)
    for cluster, name in told.names.items():
        if shown[cluster] == cluster:
            names[plain.ids[cluster]] = name
    ids = plain.ids[shown]
    for cluster in told.merged:
        if plain.ids[cluster] not in ids:
            names[plain.ids[cluster]] += f" (merged into {names[ids[cluster]]})"
    return MaskClasses(ids, names, f"{plain.meaning}; names and merges of "
                                   f"{pathlib.Path(workdir) / FILE}")


def _unnamed(workdir, config, supervised):
    path, num_clusters = pathlib.Path(workdir) / "eval.json", config.num_clusters
    scores = json.loads(path.read_text()) if path.exists() else {}
    themselves = np.arange(num_clusters, dtype=np.uint8)
    if supervised:
        names = list(config.data.class_names or scores.get("class_names", ())) or \
            [f"class {k}" for k in range(num_clusters)]
        return MaskClasses(themselves, names, "mask ids are the labels' classes")
    # A protocol may have matched k-means' clusters, or a probe's: not those of the model.
    protocol = PROTOCOLS.get(scores.get("protocol"))
    if "matching" not in scores or protocol and protocol.clusters != "model":
        why = (f"protocol {scores['protocol']} of {path} matches none of its clusters"
               if scores else f"no labels were scored in {workdir}")
        return MaskClasses(themselves, [f"cluster {k}" for k in range(num_clusters)],
                           f"{why}: mask ids are clusters")
    ids, names = np.array(scores["matching"]), list(scores["class_names"])
    for k in np.flatnonzero(ids < 0):
        ids[k] = len(names)
        names.append(f"cluster {k} (no class)")
    return MaskClasses(ids.astype(np.uint8), names,
                       f"mask ids are classes, as {path} matched them (split {scores['split']}, "
                       f"{scores['num_images']} images)")
