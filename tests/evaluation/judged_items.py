"""Items for the tests of judges; as a program: rate six of them, as somebody does who may be killed."""

import sys

from PIL import Image

from thisness.evaluation.items import Item, Picture
from thisness.evaluation.judges import make_judge


def picture(shade: int) -> Picture:
    image = Image.new("RGB", (40, 20), (shade, 255 - shade, 90))
    image.info["comment"] = b"private"
    return Picture(image)


def items(count: int) -> list[Item]:
    return [
        Item(
            id=f"item-{n}", recipe="r", subject="rex", case=f"c{n}", seed=0, picture=picture(n), noun="dog",
            references=(picture(200), picture(201)), sentence=f"sentence number {n}",
        )
        for n in range(count)
    ]  # fmt: skip


if __name__ == "__main__":
    columns = make_judge("openai:passes=2,concurrency=2", answers=sys.argv[1], say=lambda line: None)
    print([column.score(items(6)) for column in columns], flush=True)
