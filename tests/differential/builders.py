"""The two builders: the one that is tried, and the one that it is compared with."""

import os
import re
import shutil
import signal
import subprocess
import time

# A case that takes longer hangs.
LIMIT_SECONDS = 180


class Built:
    """How a build went: a layout directory, or what was said when it failed."""

    def __init__(self, layout, done, seconds):
        self.is_ok = done.returncode == 0
        self.layout = layout
        self.text = (done.stdout + done.stderr).decode(errors="replace")
        self.seconds = seconds

    def reason(self):
        """The last line that says something."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        told = [line for line in lines if "rror" in line or "!" in line or "hephy build:" in line]
        return (told or lines or ["nothing was said"])[-1][:300]


    def refusal(self):
        """The reason without times, which are another one's."""
        return re.sub(r"[0-9.]+s\b", "", self.reason())


def execute(arguments, layout, **options):
    clock = time.monotonic()
    try:
        done = subprocess.run(
            arguments, capture_output=True, stdin=subprocess.DEVNULL, timeout=LIMIT_SECONDS, check=False, **options)
    except subprocess.TimeoutExpired as expired:
        done = subprocess.CompletedProcess(arguments, 1, expired.stdout or b"", b"error: it did not end in time")
    return Built(layout, done, time.monotonic() - clock)


class Hephy:
    def __init__(self, program, data, server, name="hephy", flags=()):
        self.program = program
        self.server = server
        self.data = data
        self.name = name
        self.flags = list(flags)

    def build(self, case, layout):
        arguments = [self.program, "build", "-c", case.context, "-f", case.dockerfile, "--no-push",
                     "--oci-layout-path", layout, "--data", self.data, "--mirror", self.server.host + "/mirror", *self.flags]
        for name, value in case.build_args(self.server).items():
            arguments += ["--build-arg", f"{name}={value}"]
        for name, value in case.options.get("labels", {}).items():
            arguments += ["--label", f"{name}={value}"]
        for name, path in case.secret_files.items():
            arguments += ["--secret", f"id={name},src={path}"]
        if "target" in case.options:
            arguments += ["--target", case.options["target"]]
        return execute(arguments, layout)

    def end(self):
        """Nothing of it runs on."""


class BuildKit:
    """A rootful daemon of its own, which ends with us."""

    name = "BuildKit"

    def __init__(self, programs, runtime, root, server):
        self.programs = programs
        self.address = f"unix://{root}/buildkitd.sock"
        self.root = root
        self.server = server
        os.makedirs(root)
        config = os.path.join(root, "buildkitd.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f"""
root = "{root}/state"
[grpc]
  address = ["{self.address}"]
[worker.oci]
  enabled = true
  binary = "{runtime}"
  gc = false
[worker.containerd]
  enabled = false
[registry."docker.io"]
  mirrors = ["{server.host}/mirror"]
[registry."{server.host}"]
  http = true
""")
        self.log = open(os.path.join(root, "log"), "wb")
        environment = {"PATH": os.environ["PATH"], "HOME": root, "GIT_CONFIG_GLOBAL": "/dev/null"}
        self.daemon = subprocess.Popen(
            [f"{programs}/buildkitd", "--config", config, "--allow-insecure-entitlement", "network.host",
             "--allow-insecure-entitlement", "security.insecure"],
            stdout=self.log, stderr=self.log, env=environment, start_new_session=True)
        deadline = time.monotonic() + 60
        while self.control("debug", "workers").returncode != 0:
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"buildkitd did not start; its log is {root}/log")
            time.sleep(0.2)

    def control(self, *arguments):
        return subprocess.run(
            [f"{self.programs}/buildctl", "--addr", self.address, *arguments], capture_output=True, check=False)

    def build(self, case, layout):
        arguments = [f"{self.programs}/buildctl", "--addr", self.address, "build", "--progress", "plain",
                     "--frontend", "dockerfile.v0", "--local", f"context={case.context}",
                     "--local", f"dockerfile={os.path.dirname(case.dockerfile)}",
                     "--opt", f"filename={os.path.basename(case.dockerfile)}",
                     "--allow", "network.host", "--allow", "security.insecure",
                     "--output", f"type=oci,dest={layout},tar=false"]
        for name, value in case.build_args(self.server).items():
            arguments += ["--opt", f"build-arg:{name}={value}"]
        for name, value in case.options.get("labels", {}).items():
            arguments += ["--opt", f"label:{name}={value}"]
        for name, path in case.secret_files.items():
            arguments += ["--secret", f"id={name},src={path}"]
        if "target" in case.options:
            arguments += ["--opt", f"target={case.options['target']}"]
        return execute(arguments, layout)

    def end(self):
        """Ends the daemon."""
        self.daemon.send_signal(signal.SIGTERM)
        try:
            self.daemon.wait(20)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()
        self.log.close()


def find(names, what):
    for name in names:
        if path := shutil.which(name):
            return path
    raise SystemExit(f"{what} is missing: none of {', '.join(names)}")
