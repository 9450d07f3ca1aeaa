"""An attacker on a site's machine without a key: takes the node's tasks from its Runtime API and answers as the site.

Usage: ``forger.py PORT``. Prints a line of JSON for each task that it took, or a word that says why it gets none.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from plures.deploy.signing import BEGIN, Key
from plures.remote.flower import opened, sealed
from plures.remote.message import Order, Reply, digest, pack, unpack

OWN = Key(ec.generate_private_key(ec.SECP384R1()))
"""A key that no federation lists."""


def client(port: int, *interceptors: Any) -> RuntimeHttpClient:
    version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
    return RuntimeHttpClient.from_server_address(
        server_address=f"127.0.0.1:{port}", insecure=True, root_certificates=None, interceptors=[version, *interceptors]
    )


def forged(envelope: bytes, signed: bool) -> tuple[bytes, dict[str, object]]:
    """The forger's own weights, as an answer to the order in an envelope; and what the order revealed."""
    message = envelope[BEGIN:]
    order, tensors = unpack(message, Order)
    weights = {name: 1e3 * tensor for name, tensor in tensors.items()}
    reply = Reply(client=order.client, order=digest(message), run=order.run, round=order.round, loss=0.1)
    answer = pack(reply, weights)
    told = {
        "request": order.request,
        "round": order.round,
        "client": order.client,
        "read": sorted(tensors),
        "signed": signed,
    }
    return OWN.sign("answer", answer, envelope) if signed else answer, told


def main(port: int) -> None:
    taking, taken = client(port), 0
    while True:
        try:
            found = taking.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.HTTPStatusError as error:
            print(json.dumps({"refused": error.response.status_code}), flush=True)
            time.sleep(0.5)
            continue
        if not found.token:
            time.sleep(0.01)
            continue
        own = client(port, RuntimeTokenHttpInterceptor(found.token))
        message, context, _, _ = pull_task_input(own)
        answer, told = forged(opened(message.content), signed=bool(taken % 2))
        push_message(own, Message(sealed(answer), reply_to=message), context)
        push_task_output(own, context, SubStatus.COMPLETED, "")
        taken += 1
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
