"""Cards and pages of the gallery for tests."""

import numpy as np

from matting.data.synthetic import draw_person
from matting.results.gallery import Card, gallery_page

HOSTILE_KEYS = [
    "<script>window.injected = 1</script>.jpg",
    "\"><img src=x onerror='window.injected = 1'>.jpg",
    "two\nlines and a tab\t.jpg",
    "x" * 500,
    "名前/\u202egnp.jpg ﷽ 👩‍👩‍👧.jpg",
    "not utf-8 \udce9.jpg",
    "{{ 7 * 7 }} </style></script> --> &amp; `${1}`",
]


def sample_card(key="a/b.jpg", group="sample", number=0, width=40, height=60):
    image, alpha = draw_person(0, number, width, height)
    facts = {"size": f"{width}×{height}", "coverage": alpha.mean() / 255}
    return Card(key, group, facts, image, alpha, np.dstack([image, alpha]))


def failed_card(key, image=None):
    return Card(key, "failed", {"reason": "cut short: <b>9 of 10</b> bytes"}, image)


def sample_gallery(**changes):
    options = {
        "title": "Mattes of <faces>",
        "command": "python jobs/predict.py --images 'a & b'",
        "facts": {"Throughput": "41 photos/s", "Photos": 12345},
        "counts": {"done": 12334, "failed": 11, "left": 0},
        "failures": {"HTML or XML?": 1, "cut short": 10},
        "coverage": [1, 2, 0, 4],
        "cards": [
            sample_card("x/sure.jpg", number=1),
            sample_card("x/Doubt.png", "least confident", number=2),
            failed_card("y/bad.jpg"),
            failed_card("y/late.jpg", sample_card().image_HWC),
            sample_card("y/sure.jpg", number=3),
        ],
    }
    return gallery_page(**options | changes)
