# SPDX-License-Identifier: MIT
"""The program: reads the command line, opens what it names, and runs the VMM."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import clap
from .api import Api
from .clap import Arguments, UsageError
from .events import Events
from .grammar import OptionError, Reader
from .options import document, reader_for
from .schema import SchemaError
from .server import ListenError, Loop, listen_at, listen_on
from .validate import ValidationError, validate
from .vmconfig import attach, complete
from .vmm import Vmm, VmmError

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

_DEFAULT_VERSION = "53.0"


class _StartError(Exception):
    """The program's end before it serves; each argument is one link of the error's chain."""


def main(argv: Sequence[str]) -> int:
    """Run until the VMM ends. Returns 0, 1 after a failure, 2 for a command line that clap refuses."""
    if not argv:
        sys.stderr.write("Launch a cloud-hypervisor VMM.\n\nUsage: cloud-hypervisor [OPTIONS]\n")
        return 2
    try:
        arguments = clap.parse(argv)
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n\nFor more information, try '--help'.\n")
        return 2
    version = os.environ.get("CREDFERRY_STANDIN_VERSION", _DEFAULT_VERSION)
    if "help" in arguments:
        sys.stdout.write("Launch a cloud-hypervisor VMM.\n\nUsage: cloud-hypervisor [OPTIONS]\n")
        return 0
    if "version" in arguments:
        sys.stdout.write(f"cloud-hypervisor v{version}\nMigration Protocol Versions: 0\n")
        return 0
    try:
        return _run(arguments, version)
    except _StartError as error:
        _complain(error)
        return 1


def _run(arguments: Arguments, version: str) -> int:
    os.umask(0o077)
    number = _version_number(version)
    reader = reader_for(number)
    path, inherited = _api_socket(arguments, reader)
    if (log := arguments.one("log-file")) is not None:
        _create(log, "Error creating log file")
    events = Events(_event_monitor(arguments, reader))
    events.emit("vmm", "starting")
    light = os.environ.get("CREDFERRY_STANDIN_BOOT") == "0"
    vmm = Vmm(events, light=light, no_shutdown="no-shutdown" in arguments)
    api = Api(vmm, version)
    listener = _listen(path, inherited)
    loop = Loop(api, listener)
    try:
        if clap.PAYLOAD & arguments.values.keys():
            _create_and_boot(vmm, arguments, number)
        elif "restore" in arguments:
            raise _StartError("Error restoring VM", "not emulated by the stand-in")
    except _StartError:
        vmm.shutdown()
        raise
    status = loop.run()
    if path is not None and status == 0:
        with contextlib.suppress(OSError):
            Path(path).unlink()
    return status


def _version_number(version: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)\.([0-9]+)", version)
    if match is None:
        raise _StartError(f"CREDFERRY_STANDIN_VERSION is {version}, expected for example 46.0")
    return int(match[1]), int(match[2])


def _create_and_boot(vmm: Vmm, arguments: Arguments, version: tuple[int, int]) -> None:
    try:
        found = document(arguments, version)
        config = complete(found)
        if "net" in config:
            pairs = zip(config["net"], found["net"], strict=True)
            config["net"] = [attach(net, given.get("fds", [])) for net, given in pairs]
        validate(config)
    except OptionError as error:
        raise _StartError(
            "Error parsing config", f"Error parsing --{error.args[1]}", error.args[0]
        ) from None
    except SchemaError as error:
        raise _StartError("Error parsing config", str(error)) from None
    except ValidationError as error:
        raise _StartError("Error parsing config", "Error validating configuration", *error.args) from None
    vmm.create(config)
    try:
        vmm.boot()
    except VmmError as error:
        raise _StartError("Error booting VM", *error.args) from None


def _api_socket(arguments: Arguments, reader: Reader) -> tuple[str | None, int | None]:
    value = arguments.one("api-socket")
    if value is None:
        return None, None
    try:
        given = reader.pairs(value, ("path", "fd"))
    except OptionError:
        given = {}  # as the real one does: what is not path= or fd= is a path itself
    if given.get("fd"):
        if not given["fd"].isdecimal():
            raise _StartError("Error parsing --api-socket", "invalid digit found in string")
        return None, int(given["fd"])
    return given.get("path") or value, None


def _event_monitor(arguments: Arguments, reader: Reader) -> int | None:
    value = arguments.one("event-monitor")
    if value is None:
        return None
    try:
        given = reader.pairs(value, ("path", "fd"))
    except OptionError as error:
        raise _StartError("Error parsing --event-monitor", str(error)) from None
    if given.get("fd"):
        if not given["fd"].isdecimal():
            raise _StartError("Error parsing --event-monitor", f"unable to convert {given['fd']} for fd")
        try:
            os.set_inheritable(int(given["fd"]), False)
        except OSError as error:
            raise _StartError("Error doing event monitor I/O", _os_error(error)) from None
        return int(given["fd"])
    if not given.get("path"):
        raise _StartError("Error parsing --event-monitor: path or fd required")
    return _create(given["path"], "Error doing event monitor I/O")


def _listen(path: str | None, inherited: int | None) -> socket.socket | None:
    try:
        if inherited is not None:
            return listen_on(inherited)
        if path is None:
            return None
        listener, _lock = listen_at(path)  # the lock stays open, and held, until the process ends
    except ListenError as error:
        raise _StartError(*error.args) from None
    except OSError as error:
        raise _StartError("Failed to start the VMM thread", _os_error(error)) from None
    return listener


def _create(path: str, failed: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _StartError(failed, _os_error(error)) from None


def _os_error(error: OSError) -> str:
    return f"{error.strerror} (os error {error.errno})"


def _complain(error: _StartError) -> None:
    """Print an error as the real one does: a log line that holds it all, then the chain."""
    sys.stderr.write(f"cloud-hypervisor: <main> ERROR -- Fatal error: {error.args}\n")
    if len(error.args) == 1:
        sys.stderr.write(f"Error: Cloud Hypervisor exited with the following error:\n  {error.args[0]}\n")
        return
    sys.stderr.write("Error: Cloud Hypervisor exited with the following chain of errors:\n")
    sys.stderr.writelines(f"  {level}: {link}\n" for level, link in enumerate(error.args))
