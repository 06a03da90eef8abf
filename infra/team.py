"""A team's Prefect on one machine without containers: PostgreSQL, the server with its UI, a worker, the deployments.

    .venv/bin/python infra/team.py                 # until Ctrl-C; UI at http://127.0.0.1:4200
    .venv/bin/python infra/team.py --database sqlite

All of it listens on loopback only. PostgreSQL is Debian's (`apt-get install postgresql`); it is run as its own user
where we are root, as it refuses to be root. Whatever ends this program, kill -9 included, ends what it started.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from infra.prefect_setup import DEPLOYMENTS, POOL  # noqa: E402
from tasks.engines.lifeline import Keeper, end_group  # noqa: E402

PATIENCE_SECONDS = 180


def main() -> None:
    parser = argparse.ArgumentParser(description="A team's Prefect on one machine: PostgreSQL, server, worker.")
    parser.add_argument("--folder", type=Path, default=Path("~/.local/state/datagen-flow/team").expanduser())
    parser.add_argument("--port", type=int, default=4200, help="of the server and its UI")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--database-port", type=int, default=5442)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        url = None
        if options.database == "postgresql":
            url = stack.enter_context(postgresql(options.folder / "postgresql", options.database_port))
        api = stack.enter_context(server(options.folder, options.port, url))
        set_up(api, options.folder)
        process = stack.enter_context(worker(api, options.folder))
        print(f"UI: {api.removesuffix('/api')}   logs: {options.folder}   stop: Ctrl-C", flush=True)
        process.wait()


@contextlib.contextmanager
def postgresql(folder: Path, port: int) -> Iterator[str]:
    """A PostgreSQL of our own; its data stay in the folder. Yields Prefect's URL for it."""
    _require_free(port)
    bin_folder = _postgresql_programs()
    folder.mkdir(parents=True, exist_ok=True)
    password = _password(folder)
    user = _unprivileged(folder)
    data = folder / "data"
    if not data.exists():
        options = ["--username=prefect", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--encoding=UTF8"]
        _run([str(bin_folder / "initdb"), "-D", str(data), *options], folder / "initdb.log", user)
    command = [str(bin_folder / "postgres"), "-D", str(data), "-p", str(port)]
    command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    with _process(command, folder / "postgresql.log", user=user, stop=signal.SIGINT) as process:
        address = ["--host=127.0.0.1", f"--port={port}", "--username=prefect"]
        environment = {**os.environ, "PGPASSWORD": password}
        _wait(lambda: _succeeds([str(bin_folder / "pg_isready"), *address]), process, folder / "postgresql.log")
        if not _succeeds([str(bin_folder / "psql"), *address, "-c", "select 1", "prefect"], environment):
            subprocess.run([str(bin_folder / "createdb"), *address, "prefect"], env=environment, check=True)
        yield f"postgresql+asyncpg://prefect:{password}@127.0.0.1:{port}/prefect"


@contextlib.contextmanager
def server(folder: Path, port: int, database_url: str | None = None) -> Iterator[str]:
    """A Prefect server; without a database's URL it keeps SQLite in the folder. Yields its API's URL."""
    _require_free(port)
    api, log = f"http://127.0.0.1:{port}/api", folder / "server.log"
    environment = _settings("prefect-server.env") | {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_UI_API_URL": api}
    if database_url is not None:
        environment["PREFECT_API_DATABASE_CONNECTION_URL"] = database_url
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with _process(command, log, environment) as process:
        _wait(lambda: _answers(f"{api}/ready"), process, log)
        yield api


@contextlib.contextmanager
def worker(api: str, folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process worker of the pool. Runs that it has started end with it, within its grace."""
    settings = _client_settings(api, folder) | dict(environment or {})
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    with _process(command, folder / "worker.log", settings, grace=30.0) as process:
        yield process


def set_up(api: str, folder: Path, deployments: str = DEPLOYMENTS) -> None:
    """Pool, automation and deployments."""
    settings = _inherited() | _client_settings(api, folder)
    log = folder / "set-up.log"
    with log.open("wb") as file:
        command = [sys.executable, "infra/prefect_setup.py", deployments]
        done = subprocess.run(command, env=settings, cwd=ROOT, stdout=file, stderr=file, check=False)
    if done.returncode:
        raise SystemExit(f"the set-up failed:\n{log.read_text()[-3000:]}")


def _client_settings(api: str, folder: Path) -> dict[str, str]:
    home = {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_API_URL": api}
    return _settings("prefect-worker.env") | home | {"PYTHONPATH": str(ROOT)}


def _inherited() -> dict[str, str]:
    """Our environment without Prefect's settings: those come from the env files, whatever this shell talks to."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


def _settings(name: str) -> dict[str, str]:
    """The settings of an env file, as systemd reads it."""
    lines = (ROOT / "infra" / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@contextlib.contextmanager
def _process(
    command: list[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
    grace: float = 15.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, ended with the block, or with us however we end."""
    log.parent.mkdir(parents=True, exist_ok=True)
    keeper = Keeper()
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            env=_inherited() | dict(environment or {}),
            cwd=ROOT if user is None else log.parent,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            user=user,
        )
    keeper.watch(process.pid)
    try:
        yield process
    finally:
        process.send_signal(stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
        end_group(process.pid, 5.0, process)
        keeper.forget(process.pid)
        keeper.close()


def _postgresql_programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    on_path = shutil.which("postgres")
    if not found and on_path is None:
        raise SystemExit("PostgreSQL is not installed (apt-get install postgresql); or use --database sqlite")
    return found[-1].parent if found else Path(str(on_path)).parent


def _password(folder: Path) -> str:
    path = folder / "password"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(24), encoding="ascii")
    return path.read_text(encoding="ascii").strip()


def _unprivileged(folder: Path) -> str | None:
    """PostgreSQL's own user, given the folder, where we are root."""
    if os.getuid() != 0:
        return None
    for path in (folder, *folder.iterdir()):
        shutil.chown(path, "postgres", "postgres")
    return "postgres"


def _run(command: list[str], log: Path, user: str | None) -> None:
    with log.open("wb") as file:
        done = subprocess.run(command, stdout=file, stderr=file, user=user, cwd=log.parent, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{log.read_text()[-3000:]}")


def _succeeds(command: list[str], environment: Mapping[str, str] | None = None) -> bool:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.run(command, env=environment, check=False, **quiet).returncode == 0  # type: ignore[call-overload,no-any-return]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 (our own server)
            return bool(answer.status == 200)
    except OSError:
        return False


def _require_free(port: int) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", port))
        except OSError as error:
            raise SystemExit(f"port {port} cannot be used: {error}; choose another one") from None


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{process.args[0]} did not come up:\n{log.read_text()[-3000:]}")  # type: ignore[index]
        time.sleep(0.3)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
