"""The official `openai` package against a running `evanesce serve`: creates, polls, downloads, lists and deletes a video.

    pip install openai
    python bench/openai_client.py http://127.0.0.1:8080 [KEY]
"""

import sys
import warnings

import openai

warnings.filterwarnings("ignore", category=DeprecationWarning)


def main() -> None:
    base = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
    key = sys.argv[2] if len(sys.argv) > 2 else "none"
    client = openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0)

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
    assert video.id in [listed.id for listed in client.videos.list(limit=1)]
    deleted = client.videos.delete(video.id)
    assert deleted.deleted and deleted.object == "video.deleted", deleted
    for call, error in [
        (lambda: client.videos.retrieve(video.id), openai.NotFoundError),
        (lambda: client.videos.create(prompt="x", model="no-such-model"), openai.BadRequestError),
        (lambda: client.videos.create(prompt="x", size="33x32"), openai.BadRequestError),
    ]:
        try:
            call()
        except error as refused:
            print(f"{type(refused).__name__}: {refused.body['message']}")
        else:
            raise SystemExit("a mistake was not refused")
    print(f"openai {openai.__version__}: all as it should be")


if __name__ == "__main__":
    main()
