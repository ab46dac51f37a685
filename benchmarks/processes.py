"""Starts and stops what is measured: cachesrv, nginx, the null server. Loopback and free ports only; each is stopped by
the process that started it, by pid."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for(port: int, seconds: float = 20.0) -> None:
    """Until something listens."""
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


@contextmanager
def running(
    command: list[str], *, env: dict[str, str] | None = None, log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A child process, ended by SIGTERM."""
    with open(log or os.devnull, "ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(env or {})})
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass
class Served:
    """A server under test."""

    base: str
    pid: int
    port: int

    def workers(self) -> list[int]:
        """Pids of the processes below it that listen on its port, or itself."""
        children = subprocess.run(
            ["ps", "--ppid", str(self.pid), "-o", "pid="], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in children.stdout.split()] or [self.pid]


@contextmanager
def cachesrv(
    data: Path, *, workers: int = 1, durable: bool = True, max_size: str = "40GB", cpus: str = ""
) -> Iterator[Served]:
    """The real program on a folder. ``cpus``: a taskset list."""
    port = free_port()
    pin = ["taskset", "-c", cpus] if cpus else []
    command = [*pin, sys.executable, "-m", "cachesrv", "serve", "--listen", f"127.0.0.1:{port}", "--data", str(data)]
    command += ["--workers", str(workers), "--max-size", max_size]
    env = {
        "CACHESRV_STORE__DURABILITY": "durable" if durable else "relaxed",
        "CACHESRV_STORE__MIN_FREE": "100MB",
        "CACHESRV_LOG__ACCESS": "false",
    }
    data.parent.mkdir(parents=True, exist_ok=True)
    with running(command, env=env, log=data.parent / "cachesrv.log") as process:
        wait_for(port)
        until = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        yield Served(f"http://127.0.0.1:{port}/", process.pid, port)


@contextmanager
def nginx(folder: Path, *, cpus: str = "") -> Iterator[Served]:
    """nginx with one worker that serves, and by WebDAV takes, files of ``folder``/www (Debian: nginx-light)."""
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(binary).exists():
        raise SystemExit("this benchmark needs nginx (Debian: nginx-light)")
    port = free_port()
    www = folder / "www"
    www.mkdir(parents=True, exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    for made in (folder, www, folder / "tmp"):
        made.chmod(0o755)
    config = folder / "nginx.conf"
    config.write_text(
        f"""daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; user root;
events {{ worker_connections 1024; }}
http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; client_max_body_size 0;
 client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp/p; fastcgi_temp_path {folder}/tmp/f;
 uwsgi_temp_path {folder}/tmp/u; scgi_temp_path {folder}/tmp/s;
 server {{ listen 127.0.0.1:{port}; root {www}; location / {{ dav_methods PUT DELETE; create_full_put_path on; }} }} }}
"""
    )
    pin = ["taskset", "-c", cpus] if cpus else []
    with running([*pin, binary, "-c", str(config), "-p", str(folder)], log=folder / "out.log") as process:
        wait_for(port)
        yield Served(f"http://127.0.0.1:{port}/", process.pid, port)


def rss_anon(pid: int) -> int:
    """Anonymous memory of a process now, in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0
