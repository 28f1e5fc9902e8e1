"""A Ray cluster on one machine that Ray's autoscaler lets grow and shrink: a head with CPUs, nodes with a logical GPU each."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import ray.util

HEAD = "f" * 50 + "000000"
WORKER = {"CPU": 1, "GPU": 1}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def autoscaled(folder: Path, workers: int, head_cpus: int = 2, idle_s: int = 10) -> Iterator[dict[str, str]]:
    """The environment by which a driver joins. At most `workers` nodes come; one that is idle for `idle_s` goes."""
    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"
    node = {"min_workers": 0, "max_workers": workers, "node_config": {}}
    description = {
        "cluster_name": "autoscaled",
        "max_workers": workers,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": HEAD,
            "launch_multiple": True,
        },
        "head_node_type": "ray.head.default",
        **{key: [] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
        **{key: [] for key in ("initialization_commands", "head_start_ray_commands", "worker_start_ray_commands")},
        **{key: {} for key in ("file_mounts", "auth", "docker")},
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "available_node_types": {
            "ray.head.default": {
                "resources": {"CPU": head_cpus, "GPU": 0},
                "max_workers": 0,
                "node_config": {},
            },
            "gpu": {**node, "resources": WORKER},
        },
    }
    (folder / "autoscaler.yaml").write_text(json.dumps(description))  # JSON is YAML
    (folder / "token").write_text(secrets.token_hex(32))
    joins = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "RAY_ADDRESS": address}
    environment = {
        **{name: value for name, value in {**os.environ, **joins}.items() if name != "RAY_ADDRESS"},
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", f"--port={port}", f"--num-cpus={head_cpus}"]
    command += [
        "--num-gpus=0",
        "--include-dashboard=false",
        f"--autoscaling-config={folder / 'autoscaler.yaml'}",
    ]
    command += [f"--temp-dir=/tmp/ray-{port}", "--object-store-memory=200000000", "--block"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        for _ in range(240):
            if "Ray runtime started" in (folder / "head.log").read_text():
                break
            assert head.poll() is None, (folder / "head.log").read_text()[-2000:]
            time.sleep(0.5)
        yield joins
    finally:
        end(head, f"/tmp/ray-{port}")


def end(head: "subprocess.Popen[bytes]", temp: str) -> None:
    """All that the head has started, nodes too."""
    ours = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == head.pid or any(temp in word for word in process.cmdline()):
                ours.append(process)
    for process in ours:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    head.wait()
