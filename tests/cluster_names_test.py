"""Names and merges of clusters: what is accepted, kept, and made of masks."""

import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.cluster_names import (FILE, ClusterNames, check_cluster_names, mask_classes,
                                   read_cluster_names, write_cluster_names)
from fs4_jax.config import ConfigError, default_config


class ClusterNamesTest(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.workdir = pathlib.Path(folder.name)
        self.config = default_config()
        self.config.num_clusters = 4

    def classes(self, names=None, *, matching=None, protocol="hungarian", **options):
        if names:
            write_cluster_names(self.workdir, check_cluster_names(names, 4, "test"))
        if matching:
            (self.workdir / "eval.json").write_text(json.dumps(
                {"matching": matching, "class_names": ["sky", "road"], "split": "val",
                 "num_images": 3, "protocol": protocol}))
        return mask_classes(self.workdir, self.config, **{"supervised": False, **options})

    def test_what_is_written_is_read(self):
        self.assertEqual(read_cluster_names(self.workdir, 4), ClusterNames())
        names = check_cluster_names({"names": {"3": " Bäume  im Wind "}, "merged": {"1": 3}}, 4, "")
        self.assertEqual(names, ClusterNames({3: "Bäume im Wind"}, {1: 3}))
        write_cluster_names(self.workdir, names)
        self.assertEqual(read_cluster_names(self.workdir, 4), names)
        self.assertEqual([path.name for path in self.workdir.iterdir()], [FILE])

    def test_chains_end_where_the_last_one_goes(self):
        names = check_cluster_names({"merged": {"0": 1, "1": 3, "2": 1}}, 4, "")
        self.assertEqual(names.merged, {0: 3, 1: 3, 2: 3})
        np.testing.assert_array_equal(names.shown_as(5), [3, 3, 3, 3, 4])

    @parameterized.parameters(
        ([], "must be"), ({"names": []}, "must be"), ({"colours": {}}, "must be"),
        ({"names": {"4": "a"}}, "no cluster '4'"), ({"names": {"-1": "a"}}, "no cluster"),
        ({"names": {"x": "a"}}, "no cluster"), ({"merged": {"0": 7}}, "no cluster"),
        ({"merged": {"0": None}}, "no cluster"), ({"merged": {"0": 1.5}}, "no cluster"),
        ({"merged": {"0": True}}, "no cluster"), ({"names": {"1": ""}}, "needs a name"),
        ({"names": {"1": "x" * 81}}, "needs a name"), ({"names": {"1": "a\x00b"}}, "needs a name"),
        ({"names": {"1": 5}}, "needs a name"), ({"merged": {"0": 0}}, "circle"),
        ({"merged": {"0": 1, "1": 2, "2": 0}}, "circle"))
    def test_refused(self, content, message):
        with self.assertRaisesRegex(ConfigError, message):
            check_cluster_names(content, 4, "names")

    def test_a_match_of_other_clusters_is_not_the_models(self):
        for protocol in ("kmeans", "linear-probe"):
            classes = self.classes(matching=[1, 0, -1, -1], protocol=protocol)
            np.testing.assert_array_equal(classes.ids, range(4))
            self.assertIn(f"protocol {protocol}", classes.meaning)

    def test_a_broken_file_is_named(self):
        (self.workdir / FILE).write_text("{")
        with self.assertRaisesRegex(ConfigError, FILE):
            self.classes()

    def test_masks_without_labels(self):
        plain = self.classes()
        self.assertEqual(plain.names, ["cluster 0", "cluster 1", "cluster 2", "cluster 3"])
        named = self.classes({"names": {"2": "tree"}, "merged": {"1": 2}})
        np.testing.assert_array_equal(named.ids, [0, 2, 2, 3])      # nobody moves up
        self.assertEqual(named.names, ["cluster 0", "cluster 1 (merged into tree)", "tree",
                                       "cluster 3"])
        self.assertIn(FILE, named.meaning)
        self.assertEqual(self.classes(renamed=False).names, plain.names)

    def test_masks_of_matched_clusters(self):
        # Clusters 3 and 1 are sky and road; 0 and 2 have ids 2 and 3.
        named = self.classes({"names": {"1": "lane", "2": "kerb"}, "merged": {"0": 1}},
                             matching=[-1, 1, -1, 0])
        np.testing.assert_array_equal(named.ids, [1, 1, 3, 0])
        self.assertEqual(named.names,
                         ["sky", "lane", "cluster 0 (no class) (merged into lane)", "kerb"])

    def test_the_name_of_a_merged_cluster_waits(self):
        named = self.classes({"names": {"0": "tree", "1": "bush"}, "merged": {"1": 0}})
        self.assertEqual(named.names[:2], ["tree", "cluster 1 (merged into tree)"])

    def test_supervised(self):
        self.config.data.class_names = ("a", "b", "c", "d")
        named = self.classes({"names": {"1": "B"}, "merged": {"3": 1}}, supervised=True)
        np.testing.assert_array_equal(named.ids, [0, 1, 2, 1])
        self.assertEqual(named.names, ["a", "B", "c", "d (merged into B)"])


if __name__ == "__main__":
    absltest.main()
