"""A server that sends known numbers and writes down what comes back; a client that multiplies them by three."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

SENT = np.arange(1000, dtype=np.float32) * np.float32(0.37)

server = ServerApp()
client = ClientApp()
runs = 0


@server.main()
def serve(grid: Grid, context: Context) -> None:
    config, rounds = context.run_config, []
    out = Path(str(config["out"]))
    while len(nodes := sorted(grid.get_node_ids())) < int(config["nodes"]):
        time.sleep(0.1)
    for number in range(int(config["rounds"])):
        content = RecordDict({"arrays": ArrayRecord({"w": Array(SENT)})})
        messages = [Message(content, dst_node_id=node, message_type="train") for node in nodes]
        waiting, replies, start = set(grid.push_messages(messages)), [], time.monotonic()
        seconds = float(config["later"] if number and config["later"] else config["seconds"])
        while waiting and time.monotonic() - start < seconds:
            for reply in grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(told(reply))
            time.sleep(0.1)
        rounds.append({"round": number, "replies": replies, "missing": len(waiting)})
        out.with_suffix(".tmp").write_text(json.dumps({"environment": variables(), "rounds": rounds}))
        out.with_suffix(".tmp").replace(out)


def told(reply: Message) -> dict[str, object]:
    """What a reply says: the site, its node, the largest difference from three times what was sent, or an error."""
    if not reply.has_content():
        return {"node": reply.metadata.src_node_id, "error": reply.error.reason}
    got = reply.content["arrays"]["w"].numpy()
    about = dict(reply.content["about"])
    return {"node": reply.metadata.src_node_id, "off": float(np.abs(got - 3 * SENT).max()), **about}


@client.train()
def train(message: Message, context: Context) -> Message:
    Path(str(context.node_config["site"])).with_name("ran").touch()
    time.sleep(float(context.run_config["pause"]))
    w = message.content["arrays"]["w"].numpy() * np.float32(3)
    global runs
    process = {"process": os.getpid(), "parent": os.getppid(), "before": runs, "loaded": "torch" in sys.modules}
    runs += 1
    about = {"site": str(context.node_config["site"]), **variables(), **process}
    content = RecordDict({"arrays": ArrayRecord({"w": Array(w)}), "about": ConfigRecord(about)})
    return Message(content, reply_to=message)


def variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("FLWR_", "OMP_"))}
