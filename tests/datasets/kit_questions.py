"""Small files of the datasets whose questions were written by others, in their own formats, with other content."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.datasets.kit import picture, table


def dump(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


# COCO


def coco_picture(folder: Path, number: int, split: str = "val") -> Path:
    return picture(folder / f"{split}2014" / f"COCO_{split}2014_{number:012d}.jpg", number)


def coco_qa(folder: Path, rows: Sequence[tuple[str, str, int, int]], split: str = "test") -> Path:
    """Lines of (question, answer, image, type), and every image."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    for name, column in (("questions", 0), ("answers", 1), ("img_ids", 2), ("types", 3)):
        lines = "".join(f"{row[column]}\n" for row in rows)
        (folder / split / f"{name}.txt").write_text(lines, encoding="utf-8")
    for row in rows:
        coco_picture(folder / "images", row[2], "train" if split == "train" else "val")
    return folder


def vqa_answers(answer: str, count: int = 10, other: str = "maybe") -> list[dict[str, Any]]:
    """What ten annotators said: an answer, so many of them, and another."""
    return [
        {"answer": answer if i < count else other, "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)
    ]


def vqa_v2(
    folder: Path, asked: Mapping[int, tuple[int, str, str, list[dict[str, Any]]]], pairs: Sequence[Sequence[int]]
) -> Path:
    """Questions: id → (image, question, type of answer, what annotators said); complementary pairs; every image."""
    shared = {"info": {"year": 2017}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    questions = [{"image_id": i, "question": q, "question_id": number} for number, (i, q, _, _) in asked.items()]
    annotations = [
        {
            "question_type": "what",
            "multiple_choice_answer": said[0]["answer"],
            "answers": said,
            "image_id": image,
            "answer_type": kind,
            "question_id": number,
        }
        for number, (image, _, kind, said) in asked.items()
    ]
    dump(
        folder / "v2_OpenEnded_mscoco_val2014_questions.json",
        {**shared, "task_type": "Open-Ended", "questions": questions},
    )
    dump(folder / "v2_mscoco_val2014_annotations.json", {**shared, "annotations": annotations})
    dump(folder / "v2_mscoco_val2014_complementary_pairs.json", pairs)
    for image, *_ in asked.values():
        coco_picture(folder / "images", image)
    return folder


# CLEVR


def clevr_thing(words: str, place: float) -> dict[str, Any]:
    """A thing of four words, "small red rubber cube", so far to the right and so far in front."""
    size, color, material, shape = words.split()
    return {
        "color": color,
        "size": size,
        "rotation": 12.5,
        "shape": shape,
        "3d_coords": [place, place, 0.7 if size == "large" else 0.35],
        "material": material,
        "pixel_coords": [round(240 + 40 * place), round(160 + 20 * place), 11.0 - place],
    }


def clevr_scene(number: int, things: Sequence[str]) -> dict[str, Any]:
    """Things from left to right, each farther in front than the one before it."""
    count = len(things)
    right = [list(range(i + 1, count)) for i in range(count)]
    left = [list(range(i)) for i in range(count)]
    return {
        "image_index": number,
        "objects": [clevr_thing(words, i - count / 2) for i, words in enumerate(things)],
        "relationships": {"right": right, "front": right, "left": left, "behind": left},
        "image_filename": f"CLEVR_val_{number:06d}.png",
        "split": "val",
        "directions": {"right": [0.7, 0.7, 0.0], "above": [0.0, 0.0, 1.0]},
    }


def clevr_program(*steps: Any) -> list[dict[str, Any]]:
    """Steps such as "scene", "filter_color red", each on the one before it; or (step, inputs)."""
    program = []
    for place, step in enumerate(steps):
        words, inputs = step if isinstance(step, tuple) else (step, [] if step == "scene" else [place - 1])
        name, _, value = words.partition(" ")
        program.append({"inputs": inputs, "function": name, "value_inputs": [value] if value else []})
    return program


def clevr_question(number: int, image: int, question: str, answer: str, *steps: Any) -> dict[str, Any]:
    return {
        "image_index": image,
        "program": clevr_program(*steps),
        "question_index": number,
        "image_filename": f"CLEVR_val_{image:06d}.png",
        "question_family_index": 12,
        "split": "val",
        "answer": answer,
        "question": question,
    }


def clevr(folder: Path, scenes: Sequence[Mapping[str, Any]], questions: Sequence[Mapping[str, Any]]) -> Path:
    """Scenes, questions, and a picture of every scene, as large as CLEVR's."""
    info = {"split": "val", "license": "none", "version": "1.0", "date": "today"}
    dump(folder / "scenes" / "CLEVR_val_scenes.json", {"info": info, "scenes": scenes})
    dump(folder / "questions" / "CLEVR_val_questions.json", {"info": info, "questions": questions})
    for number, scene in enumerate(scenes):
        picture(folder / "images" / "val" / str(scene["image_filename"]), number, (480, 320))
    return folder


# GQA

GQA_NAME = "GQA_val_correct_question_with_{}.csv"
GQA_FILES = {
    "ChooseAttr": "choose_ChooseAttr",
    "ChooseCat": "categoryThatThisChoose_objThisChoose_ChooseCat",
    "ChooseRel": "relChooser_ChooseRel",
    "CompareAttr": "twoCommon_CompareAttr",
    "LogicalObj": "existThatOr_LogicalObj",
    "QueryAttr": "positionQuery_QueryAttr",
}


def gqa_table(
    folder: Path,
    task: str,
    rows: Sequence[tuple[str, str, str, str]],
    operation: str = "choose",
    boxes: Sequence[Any] = ((10, 20, 30, 40), (50, 60, 20, 20)),
) -> Path:
    """The table of a task: rows of (question, answer, false option or "", names of things, comma between), each of its
    own image; boxes x, y, width and height, or None."""
    central = task in ("ChooseAttr", "ChooseCat", "QueryAttr")
    prefixes = ["central object"] if central else ["object1", "object2"]
    options = ["true option", "false option"] if task.startswith("Choose") else []
    header = ["question_id", "img_id", "question", "answer", *options]
    header += [f"{prefix} {of}" for prefix in prefixes for of in ("name", "id")]
    header += ["type_detailed", "operations", "captions", "image_w", "image_h"]
    header += [f"{prefix} {side}" for prefix in prefixes for side in ("w", "h", "x", "y")]
    lines = []
    for number, (question, answer, false, names) in enumerate(rows):
        image = 2_300_000 + number
        line: list[Any] = [f"{task}{number}", image, question, answer, *([answer, false] if options else [])]
        line += [cell for name in names.split(",") for cell in (name, "77")]
        steps = [{"operation": "select", "dependencies": [], "argument": "x"}, {"operation": operation}]
        line += ["any", str(steps), "a picture. of things", 96, 80]
        for box in boxes[: len(prefixes)]:
            x, y, w, h = box or ("-",) * 4
            line += [w, h, x, y]
        lines.append(line)
        picture(folder / "images" / f"{image}.jpg", number, (96, 80))
    return table(folder / "datasets" / GQA_NAME.format(GQA_FILES[task]), header, lines)


def gqa_question(
    image: int, question: str, answer: str, detailed: str, *steps: tuple[str, str], types: Any = None
) -> dict[str, Any]:
    """A question of GQA's own, with its program: (operation, argument)."""
    return {
        "semantic": [{"operation": name, "dependencies": [], "argument": argument} for name, argument in steps],
        "entailed": [],
        "question": question,
        "imageId": str(image),
        "isBalanced": True,
        "groups": {"global": "", "local": "13-apple_dog"},
        "answer": answer,
        "semanticStr": "",
        "annotations": {"answer": {}, "question": {"2": "77"}, "fullAnswer": {}},
        "types": types or {"detailed": detailed, "semantic": "attr", "structural": "choose"},
        "fullAnswer": "It is.",
    }


def gqa(folder: Path, questions: Mapping[str, Any], boxes: Mapping[str, tuple[int, int, int, int]]) -> Path:
    """GQA's questions, scene graphs in which every image has all of the boxes, and every image."""
    dump(folder / "questions1.2" / "val_balanced_questions.json", questions)
    things = {
        name: {"name": "thing", "x": x, "y": y, "w": w, "h": h, "attributes": [], "relations": []}
        for name, (x, y, w, h) in boxes.items()
    }
    images = sorted({question["imageId"] for question in questions.values() if "imageId" in question})
    graphs = {image: {"width": 96, "height": 80, "objects": things} for image in images}
    dump(folder / "sceneGraphs" / "val_sceneGraphs.json", graphs)
    for number, image in enumerate(images):
        picture(folder / "images" / f"{image}.jpg", number, (96, 80))
    return folder


# VQA-Constraints


def constraints_table(folder: Path, source: str, rows: Sequence[tuple[str, str, str, str]]) -> Path:
    """A table of (question, constraint, image_url, subject or director), and a folder of images or an image each."""
    names = {"okvqa": "okvqa.csv", "known": "multimodal_known.csv", "movies": "multimodal_movies.csv"}
    about = {"okvqa": [], "known": ["subject"], "movies": ["director"]}[source]
    lines = []
    for number, (question, constraint, url, subject) in enumerate(rows):
        lines.append([number, question, *([subject] if about else []), constraint, url])
        path = folder / "images" / url.removeprefix("./")
        for name in ("Image_10.jpg", "Image_2.jpg") if about else ():
            picture(path / name, number)
        if not about:
            picture(path, number)
    return table(folder / names[source], ["", "question", *about, "main_entity", "image_url"], lines)


def known_facts(folder: Path, facts: Sequence[tuple[str, str, str, str]]) -> Path:
    """known_1000.json, of (subject, attribute, prompt, relation)."""
    return dump(
        folder / "known_1000.json",
        [
            {
                "known_id": number,
                "subject": subject,
                "attribute": attribute,
                "template": "{} is",
                "prediction": f" {attribute}, and",
                "prompt": prompt,
                "relation_id": relation,
            }
            for number, (subject, attribute, prompt, relation) in enumerate(facts)
        ],
    )


def ok_vqa(folder: Path, asked: Mapping[int, tuple[int, str, list[dict[str, Any]]]]) -> Path:
    """OK-VQA's two files: id → (image, question, answers)."""
    questions = [{"image_id": i, "question": q, "question_id": number} for number, (i, q, _) in asked.items()]
    annotations = [
        {
            "image_id": image,
            "answer_type": "other",
            "question_type": "four",
            "question_id": number,
            "answers": [{**each, "raw_answer": each["answer"]} for each in answers],
            "confidence": 3,
        }
        for number, (image, _, answers) in asked.items()
    ]
    dump(folder / "OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    dump(folder / "mscoco_val2014_annotations.json", {"annotations": annotations})
    return folder
