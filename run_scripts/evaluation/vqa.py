# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Visual question answering by a small probe on frozen embeddings of image and question."""

import re
from collections import Counter

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from run_scripts.data.source import open_source
from run_scripts.evaluation.arguments import VQAArguments
from run_scripts.evaluation.inputs import describe_data, embed_all_images, embed_texts, read_texts
from run_scripts.evaluation.results import Chart, Evaluation, Metric


# The rules of the official script, by which answers are compared: visualqa.org/evaluation, GT-Vision-Lab/VQA at commit
# c4e6a0e, `vqaEval.py`. Signs that are not named here, such as $, %, &, # and the apostrophe, stay.
SIGNS = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = dict(zip("zero one two three four five six seven eight nine ten".split(), map(str, range(11)), strict=True))
NUMBERS["none"] = "0"
ARTICLES = {"a", "an", "the"}
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


# A word that lacks one of its apostrophes gets it back.
CONTRACTIONS = {short: word for word in _CONTRACTED.split() for short in _without_one_apostrophe(word)}
CONTRACTIONS["somebody'd"] = "somebodyd"  # Official: the other way round; kept so that scores compare


def normalise_answer(answer: str) -> str:
    """An answer as the official script compares it: in lower case, numbers up to ten as digits, without articles and
    most punctuation, contractions with their apostrophes.

    A sign vanishes where it stands beside a space anywhere in the answer, or where the answer has a comma between
    digits; else a space takes its place. A point vanishes unless a digit follows.
    """
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    has_grouped_digits = re.search(r"\d,\d", answer) is not None
    plain = answer
    for sign in SIGNS:
        vanishes = has_grouped_digits or f"{sign} " in answer or f" {sign}" in answer
        plain = plain.replace(sign, "" if vanishes else " ")
    plain = re.sub(r"\.(?!\d)", "", plain)
    words = [NUMBERS.get(word, word) for word in plain.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_score(answer: str, annotators: list[str]) -> float:
    """The official accuracy of an answer: over all ways to leave one annotator out, the mean of min(matches / 3, 1).

    Args:
        answer, annotators: normalised; VQAv2 has ten annotators.

    Source: Antol et al., "VQA: Visual Question Answering", ICCV 2015, and visualqa.org/evaluation.
    """
    matches, total = annotators.count(answer), len(annotators)
    # Leaving out one of the matching annotators, or one of the others.
    scores = matches * min((matches - 1) / 3, 1) + (total - matches) * min(matches / 3, 1)
    return scores / total


def read_answers(dataset: Dataset, column: str) -> list[list[str]]:
    """The normalised answers of every row.

    Raises:
        ValueError: a row has fewer than 4 answers, with which even full agreement would not score 1, or one of them is
            no text.
    """
    answers = []
    for row, cell in enumerate(dataset[column]):
        if not isinstance(cell, list) or len(cell) < 4:
            raise ValueError(f"answers_column={column!r} of row {row} must list at least 4 answers, got {cell!r}")
        texts = [item.get("answer") if isinstance(item, dict) else item for item in cell]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"answers_column={column!r} of row {row} holds {cell!r}, not an answer each")
        answers.append([normalise_answer(text) for text in texts])
    return answers


def most_frequent_answers(answers: list[list[str]], num_answers: int) -> list[str]:
    """The answers that most questions have as their most common one; of equals, the first in the alphabet."""
    counts = Counter(sorted(Counter(sorted(of_row)).most_common(1)[0][0] for of_row in answers))
    return [answer for answer, _ in counts.most_common(num_answers)]


def score_table(answers: list[list[str]], vocabulary: list[str]) -> torch.Tensor:
    """(num_rows, num_answers) soft scores of every answer of the vocabulary, as a sparse tensor."""
    positions = {answer: position for position, answer in enumerate(vocabulary)}
    entries = [
        (row, positions[answer], soft_score(answer, of_row))
        for row, of_row in enumerate(answers)
        for answer in dict.fromkeys(of_row)
        if answer in positions
    ]
    indices = torch.tensor([entry[:2] for entry in entries], dtype=torch.long).reshape(-1, 2).T
    values = torch.tensor([entry[2] for entry in entries])
    return torch.sparse_coo_tensor(indices, values, (len(answers), len(vocabulary)), check_invariants=True).coalesce()


def fit_answers(
    features: torch.Tensor, scores: torch.Tensor, hidden_dim: int, num_epochs: int, seed: int, device: str
) -> nn.Module:
    """An MLP with one hidden layer, fitted to soft scores by binary cross-entropy (AdamW, 1e-3, batches of 512).

    Args:
        features: (num_rows, dim).
        scores: (num_rows, num_answers) sparse, from 0 to 1.
    """
    torch.manual_seed(seed)
    probe = nn.Sequential(
        nn.Linear(features.shape[1], hidden_dim), nn.GELU(), nn.Dropout(0.5), nn.Linear(hidden_dim, scores.shape[1])
    ).to(device)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3)
    for _ in range(num_epochs):
        for rows in torch.randperm(len(features)).split(512):
            targets = scores.index_select(0, rows).to_dense().to(device)
            logits = probe(features[rows].to(device))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return probe.eval()


@torch.inference_mode()
def predict(probe: nn.Module, features: torch.Tensor, device: str) -> torch.Tensor:
    """(num_rows,) positions of the best answers."""
    return torch.cat([probe(part.to(device)).argmax(dim=1).cpu() for part in features.split(512)])


def evaluate_vqa(model: PreTrainedModel, processor: ProcessorMixin, arguments: VQAArguments) -> Evaluation:
    """Fit the probe on one split and answer the questions of another."""
    columns = {
        name: getattr(arguments, name)
        for name in ("question_column", "answers_column", "image_id_column", "answer_type_column")
    }
    datasets, features, answers = {}, {}, {}
    for part, split in {"test": arguments.split, "train": arguments.train_split}.items():
        dataset = open_source(arguments, split, **columns)
        datasets[part], answers[part] = dataset, read_answers(dataset, arguments.answers_column)
        features[part] = embed_questions(model, processor, dataset, arguments)

    vocabulary = most_frequent_answers(answers["train"], arguments.num_answers)
    device = str(model.device)
    scores = score_table(answers["train"], vocabulary)
    probe = fit_answers(features["train"], scores, arguments.hidden_dim, arguments.num_epochs, arguments.seed, device)
    predictions = [vocabulary[position] for position in predict(probe, features["test"], device)]

    def accuracy(guesses: list[str]) -> torch.Tensor:
        return torch.tensor([soft_score(*pair) for pair in zip(guesses, answers["test"], strict=True)]).double()

    scored = accuracy(predictions)
    metrics = {"vqa_accuracy": Metric(scored.mean().item(), accuracy([vocabulary[0]] * len(scored)).mean().item())}
    known = set(vocabulary)
    best = [max((soft_score(a, of_row) for a in set(of_row) & known), default=0.0) for of_row in answers["test"]]
    charts = []
    if arguments.answer_type_column is not None:
        types = read_texts(datasets["test"], arguments.answer_type_column, "answer_type_column")
        for kind in sorted(set(types)):
            of_kind = torch.tensor([other == kind for other in types])
            metrics[f"vqa_accuracy_{kind}"] = Metric(scored[of_kind].mean().item())
        bars = [(kind, metrics[f"vqa_accuracy_{kind}"].value) for kind in sorted(set(types))]
        charts.append(Chart("Accuracy by type of answer", "bar", {"accuracy": bars}))
    metrics["best_possible"] = Metric(sum(best) / len(best))
    return Evaluation(
        metrics=metrics,
        headline=arguments.metric,
        data=[
            describe_data(arguments.dataset, split, datasets[part], ["image", *columns.values()])
            for part, split in {"test": arguments.split, "train": arguments.train_split}.items()
        ],
        counts={"questions": len(predictions), "train_questions": len(answers["train"]), "answers": len(vocabulary)},
        charts=charts,
    )


def embed_questions(
    model: PreTrainedModel, processor: ProcessorMixin, dataset: Dataset, arguments: VQAArguments
) -> torch.Tensor:
    """(num_rows, 2 dim): the embeddings of image and question side by side."""
    rows = range(len(dataset))
    ids = rows if arguments.image_id_column is None else dataset[arguments.image_id_column][:]
    if None in ids:
        raise ValueError(f"image_id_column={arguments.image_id_column!r} of row {ids.index(None)} is None")
    first_rows = {image_id: row for row, image_id in reversed(list(enumerate(ids)))}
    shown = sorted(first_rows.values())
    positions = {row: position for position, row in enumerate(shown)}
    images = embed_all_images(model, processor, dataset.select(shown), arguments.batch_size)
    questions = embed_texts(
        model, processor, read_texts(dataset, arguments.question_column, "question_column"), arguments.batch_size
    )
    return torch.cat([images[[positions[first_rows[image_id]] for image_id in ids]], questions], dim=1)
