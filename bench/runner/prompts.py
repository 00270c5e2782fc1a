"""The prompts of full-size rows: 480 of a subject and a place, ordered so that neighbours share neither."""

from __future__ import annotations

_SUBJECTS = (
    "a lighthouse keeper reading a letter",
    "an old blue tram with open windows",
    "a barn owl spreading its wings",
    "a baker sliding loaves into a stone oven",
    "a red fox carrying a lantern",
    "two children flying a paper kite",
    "a glass teapot full of chrysanthemums",
    "an astronaut planting a seedling",
    "a wooden rowing boat with a white sail",
    "a watchmaker bent over a brass clock",
    "a tabby cat asleep on a piano",
    "a cyclist with a basket of oranges",
    "a robot made of tin cans and springs",
    "a dancer in a long green coat",
    "a market stall piled with spices",
    "a white horse shaking off the rain",
    "a violinist tuning her instrument",
    "a hot-air balloon shaped like a whale",
    "a cartographer unrolling a large map",
    "a stack of antique books and a candle",
    "a fisherman mending a yellow net",
    "a small stone house with a thatched roof",
    "a chess board in the middle of a game",
    "a gardener holding a giant pumpkin",
)
_PLACES = (
    "on a windswept cliff above the sea, in the last light of the day",
    "in a narrow street after the rain, neon signs reflected in the puddles",
    "at the edge of a pine forest covered in fresh snow, early morning",
    "in a sunlit studio with tall windows and dust in the air",
    "on the platform of a railway station from the 1920s, steam all around",
    "in a meadow of wild poppies under a heavy thunder cloud",
    "beside a still mountain lake, the peaks mirrored in the water",
    "in the reading room of an enormous library, warm lamps on the desks",
    "on the roof of a high building at night, the city glowing below",
    "in a desert of orange dunes, long shadows and a pale moon",
    "inside a greenhouse full of ferns, soft light through wet glass",
    "at a harbour in thick fog, gulls circling over the masts",
    "in a terraced rice field at noon, drawn with precise ink lines",
    "under the arches of an old viaduct, in the style of an oil painting",
    "on a frozen river between wooden houses, people skating behind",
    "in a cave lit by glowing mushrooms, highly detailed",
    "on a quiet beach at low tide, shot on 35 mm film",
    "in a vineyard in autumn, golden leaves and a low sun",
    "at a crowded night market, paper lanterns overhead",
    "in front of a whitewashed wall, a single hard shadow, minimal composition",
)

COUNT = len(_SUBJECTS) * len(_PLACES)


def prompt(index: int) -> str:
    """``index`` from 0; distinct up to COUNT.

    24 subjects and 20 places walk in step, which repeats after 120; the places then shift by one.
    """
    shift = index // 120
    return f"{_SUBJECTS[index % len(_SUBJECTS)]} {_PLACES[(index + shift) % len(_PLACES)]}"
