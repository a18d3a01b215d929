# SPDX-License-Identifier: MIT
"""The HTTP API: paths, methods and status codes as in cloud-hypervisor v53's vmm/src/api/http."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .http import Request, Response
from .schema import Json, SchemaError
from .vmconfig import complete, complete_net
from .vmm import Vmm, VmmError

if TYPE_CHECKING:
    from collections.abc import Callable

_ROOT = "/api/v1/"
_NOT_EMULATED = frozenset(
    {
        "vm.add-device",
        "vm.add-disk",
        "vm.add-fs",
        "vm.add-generic-vhost-user",
        "vm.add-pmem",
        "vm.add-user-device",
        "vm.add-vdpa",
        "vm.add-vsock",
        "vm.coredump",
        "vm.counters",
        "vm.nmi",
        "vm.pause",
        "vm.receive-migration",
        "vm.remove-device",
        "vm.resize",
        "vm.resize-disk",
        "vm.resize-zone",
        "vm.restore",
        "vm.resume",
        "vm.send-migration",
        "vm.snapshot",
    }
)


@dataclass(slots=True)
class Api:
    """Answers requests. ``ended`` becomes true once the VMM was told to shut down."""

    vmm: Vmm
    version: str
    ended: bool = False

    def answer(self, request: Request) -> Response:
        """The answer to one request; its descriptors are closed, those that a VM keeps are copies."""
        try:
            return self._answer(request)
        except VmmError as error:
            return _failure(error.status, "Error from API", *error.args)
        except SchemaError as error:
            return _failure(400, "Failed to deserialize JSON", str(error))
        finally:
            for descriptor in request.descriptors:
                os.close(descriptor)

    def _answer(self, request: Request) -> Response:
        name = request.path.removeprefix(_ROOT)
        actions: dict[str, Callable[[], None]] = {
            "vm.boot": self.vmm.boot,
            "vm.delete": self.vmm.delete,
            "vm.power-button": self.vmm.power_button,
            "vm.reboot": self.vmm.reboot,
            "vm.shutdown": self.vmm.shutdown_vm,
        }
        documents: dict[str, Callable[[bytes, tuple[int, ...]], None]] = {
            "vm.add-net": self._add_net,
            "vm.create": self._create,
        }
        views: dict[str, Callable[[], Json]] = {"vm.info": self.vmm.info, "vmm.ping": self._pong}
        known = {*actions, *documents, *views, *_NOT_EMULATED, "vmm.shutdown"}
        if not request.path.startswith(_ROOT) or name not in known:
            return _failure(404, "Not Found")
        response = _failure(400, "Bad Request")
        if name in _NOT_EMULATED:
            response = _failure(500, "Error from API", "not emulated by the stand-in")
        elif request.method == "PATCH" or (request.method, name, request.body) == ("PUT", "vm.create", None):
            response = Response(400, b"")
        elif request.method == "GET" and name in views:
            response = _success(views[name]())
        elif request.method == "PUT" and name == "vmm.shutdown":
            self.vmm.shutdown()
            self.ended = True
            response = Response(200, b"")
        elif request.method == "PUT" and name in documents and request.body is not None:
            documents[name](request.body, request.descriptors)
            response = Response(204)
        elif request.method == "PUT" and name in actions and request.body is None:
            actions[name]()
            response = Response(204)
        return response

    def _create(self, body: bytes, _descriptors: tuple[int, ...]) -> None:
        self.vmm.create(complete(_loads(body)))

    def _add_net(self, body: bytes, received: tuple[int, ...]) -> None:
        # Copies: those that were received are closed with the request, and the VM's must survive a reboot.
        kept = [os.dup(descriptor) for descriptor in received]
        try:
            self.vmm.add_net(complete_net(_loads(body), kept))
        except (SchemaError, VmmError):
            for descriptor in kept:
                os.close(descriptor)
            raise

    def _pong(self) -> Json:
        return {
            "build_version": f"v{self.version}",
            "version": f"{self.version}.0",
            "pid": os.getpid(),
            "features": ["io_uring", "kvm"],
        }


def _loads(body: bytes) -> object:
    try:
        loaded: object = json.loads(body)
    except json.JSONDecodeError as error:
        raise SchemaError(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except (UnicodeDecodeError, RecursionError):
        raise SchemaError("expected value at line 1 column 1") from None
    return loaded


def _success(document: Json) -> Response:
    return Response(200, json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode())


def _failure(status: int, *chain: str) -> Response:
    return Response(status, json.dumps(chain, separators=(",", ":"), ensure_ascii=False).encode())
