"""The official `openai` package against a running `evanesce serve`: creates, polls, downloads, lists and deletes videos, and checks the
signature of a webhook.

    pip install openai
    python bench/openai_client.py http://127.0.0.1:8080 [--key KEY] [--webhook-secret FILE]

A webhook comes to this machine only if the service's configuration allows it (`private_addresses` of `[webhooks]`); FILE is then
`webhook.secret` in the service's data directory.
"""

import argparse
import http.server
import pathlib
import queue
import threading
import warnings

import openai

warnings.filterwarnings("ignore", category=DeprecationWarning)

SMALL = {"size": "64x64", "extra_body": {"seed": 7, "num_inference_steps": 2, "num_frames": 5, "priority": "interactive"}}


def make_and_fetch(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    video = client.videos.create_and_poll(
        prompt="a red ball moving to the left on a black background",
        model=model,
        seconds="1",
        size="64x64",
        extra_body={"seed": 7, "num_inference_steps": 4, "priority": "interactive"},
    )
    assert video.status == "completed", video
    assert video.progress == 100 and video.seconds == "1" and video.size == "64x64", video
    for variant, start in [("video", b"ftyp"), ("thumbnail", b"\xff\xd8"), ("spritesheet", b"\xff\xd8")]:
        content = client.videos.download_content(video.id, variant=variant).content
        assert start in content[:8], (variant, content[:8])
        print(f"{variant}: {len(content)} bytes")
    assert client.videos.retrieve(video.id).id == video.id
    deleted = client.videos.delete(video.id)
    assert deleted.deleted and deleted.object == "video.deleted", deleted
    refused(openai.NotFoundError, lambda: client.videos.retrieve(video.id))


def list_in_pages(client: openai.OpenAI) -> None:
    made = [client.videos.create(prompt=f"ball {at}", **SMALL).id for at in range(5)]
    # The package asks for page after page by itself.
    for order, expected in [("asc", made), ("desc", made[::-1])]:
        listed = [video.id for video in client.videos.list(limit=2, order=order) if video.id in made]
        assert listed == expected, (order, listed, expected)
    answer = client.videos.with_raw_response.retrieve(made[-1])
    assert answer.parse().status == "completed" or int(answer.headers["openai-poll-after-ms"]) >= 250
    for video in made:
        assert client.videos.poll(video).status == "completed"
        client.videos.delete(video)
    print(f"{len(made)} videos listed in pages, polled and deleted")


def refused(error: type[openai.APIStatusError], call) -> None:
    try:
        call()
    except error as answer:
        assert answer.body["message"] and answer.code, answer.body
        print(f"{error.__name__}: {answer.body['message']}")
    else:
        raise SystemExit(f"a mistake was not refused with {error.__name__}")


def mistakes(client: openai.OpenAI) -> None:
    create = client.videos.create
    refused(openai.BadRequestError, lambda: create(prompt="x", model="no-such-model"))
    refused(openai.BadRequestError, lambda: create(prompt="x", size="33x32"))
    refused(openai.BadRequestError, lambda: create(prompt="", size="64x64"))
    keys = {"Idempotency-Key": f"client-{id(client)}"}
    first = create(prompt="x", extra_headers=keys, **SMALL)
    assert create(prompt="x", extra_headers=keys, **SMALL).id == first.id
    refused(openai.UnprocessableEntityError, lambda: create(prompt="y", extra_headers=keys, **SMALL))
    client.videos.poll(first.id)
    client.videos.delete(first.id)


def webhook(client: openai.OpenAI, secret: str) -> None:
    messages = queue.Queue()

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            messages.put((body, dict(self.headers.items())))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        small = {**SMALL, "extra_body": {**SMALL["extra_body"], "webhook": f"http://127.0.0.1:{server.server_port}/"}}
        video = client.videos.create(prompt="a ball", **small)
        body, headers = messages.get(timeout=60)
        server.shutdown()
    client.webhooks.verify_signature(body, headers, secret=secret)
    try:
        client.webhooks.verify_signature(body + b" ", headers, secret=secret)
    except openai.InvalidWebhookSignatureError:
        print(f"webhook: {body.decode()}")
    else:
        raise SystemExit("a changed message was not noticed")
    client.videos.delete(video.id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", default="http://127.0.0.1:8080")
    parser.add_argument("--key", default="none")
    parser.add_argument("--webhook-secret", type=pathlib.Path)
    asked = parser.parse_args()
    client = openai.OpenAI(base_url=f"{asked.base}/v1", api_key=asked.key, max_retries=0)
    make_and_fetch(client)
    list_in_pages(client)
    mistakes(client)
    if asked.webhook_secret:
        webhook(client, asked.webhook_secret.read_text().strip())
    print(f"openai {openai.__version__}: all as it should be")


if __name__ == "__main__":
    main()
