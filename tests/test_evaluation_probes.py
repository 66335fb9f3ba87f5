"""The probes' parts by hand-made data, naive twins and scikit-learn: linear probe, VQA, completeness, codes."""

import random
from itertools import combinations

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression

from run_scripts.evaluation import codes, completeness, linear_probe, vqa
from run_scripts.evaluation.embedding import Features


# Linear probe


def clusters(num_rows: int, num_classes: int, seed: int, spread: float = 0.3) -> linear_probe.Rows:
    generator = np.random.default_rng(seed)
    labels = np.arange(num_rows) % num_classes
    centres = np.random.default_rng(0).normal(size=(num_classes, 8))
    return linear_probe.Rows(centres[labels] + spread * generator.normal(size=(num_rows, 8)), labels)


def probe_arguments(**changes) -> linear_probe.LinearProbeArguments:
    return linear_probe.LinearProbeArguments(model="unused", dataset="unused", **changes)


@pytest.mark.parametrize("peak", [0, 5, 48, 77, 96])
def test_the_search_finds_the_peak_with_few_tries(peak):
    asked = []

    def accuracy(position: int) -> float:
        asked.append(position)
        return 1 - abs(position - peak) / 97

    best, tried = linear_probe.search_strength(accuracy)
    assert best == peak and len(asked) == len(set(asked)) == len(tried) <= 7 + 2 * 4


def test_of_equal_strengths_the_strongest_is_kept():
    assert linear_probe.search_strength(lambda position: 0.5)[0] == 96
    assert linear_probe.STRENGTHS[0] == 1e-6 and linear_probe.STRENGTHS[96] == 1e6
    assert linear_probe.STRENGTHS[56] == pytest.approx(10)  # eighths of a decade


def test_the_probe_is_refitted_on_all_rows_and_equals_scikit_learn():
    train, validation, test = (clusters(40, 4, seed, spread=1.0) for seed in (1, 2, 3))
    found = linear_probe.probe(train, validation, test, probe_arguments())["metrics"]
    strength = 10 ** found["regularisation_log10"].value
    features, labels = np.concatenate([train.features, validation.features]), [*train.labels, *validation.labels]
    expected = LogisticRegression(C=1 / strength, max_iter=1000).fit(features, labels)
    assert found["top_1"].value == pytest.approx(expected.score(test.features, test.labels), abs=1e-9)
    assert found["top_1"].chance == 0.25 and 0.5 < found["top_1"].value < 1


def test_mean_per_class_weighs_classes_alike():
    labels, predictions = np.array([0, 0, 0, 1]), np.array([0, 0, 0, 2])
    assert linear_probe.mean_recall(labels, predictions) == 0.5


def test_few_shots_are_drawn_by_class_and_seed():
    labels = np.arange(60) % 3
    shots, tuning = linear_probe.draw_shots(labels, 8, seed=0)
    assert np.bincount(labels[shots]).tolist() == [8, 8, 8] and np.bincount(labels[tuning]).tolist() == [4, 4, 4]
    assert not set(shots) & set(tuning)
    assert np.array_equal(shots, linear_probe.draw_shots(labels, 8, seed=0)[0])
    assert not np.array_equal(shots, linear_probe.draw_shots(labels, 8, seed=1)[0])
    with pytest.raises(ValueError, match="few_shot=17 needs 21 rows of every class.*class 0 has 20"):
        linear_probe.draw_shots(labels, 17, seed=0)


def test_more_shots_do_better(monkeypatch):
    monkeypatch.setattr(linear_probe, "STRENGTHS", np.logspace(-1, 1, 17))  # fewer to try
    train, test = clusters(80, 4, 4, spread=2.0), clusters(200, 4, 5, spread=2.0)
    outcome = linear_probe.probe(train, None, test, probe_arguments(few_shot=[1, 16], num_seeds=2))
    metrics = outcome["metrics"]
    assert metrics["top_1_16_shot"].value > metrics["top_1_1_shot"].value > 0.25
    assert {"top_1_1_shot_std", "top_1_16_shot_std"} <= set(metrics)
    assert [chart.title for chart in outcome["charts"]] == ["Validation accuracy", "Few shots"]
    single = linear_probe.probe(train, None, test, probe_arguments(few_shot=[1], num_seeds=1))
    assert "top_1_1_shot_std" not in single["metrics"] and len(single["charts"]) == 1


def test_rows_that_cannot_be_probed_are_refused():
    lonely = linear_probe.Rows(np.zeros((5, 2)), np.array([0, 0, 0, 0, 1]))
    with pytest.raises(ValueError, match="name a validation_split"):
        linear_probe.split_off(lonely, seed=0)
    with pytest.raises(ValueError, match="at least 2 classes"):
        linear_probe.fit_probe(linear_probe.Rows(np.zeros((3, 2)), np.zeros(3)), 1.0)
    for labels, bad in ((["a", None], "None"), ([1.0, 0.5], "1.0"), ([[1], [2]], r"\[1\]")):
        with pytest.raises(ValueError, match=f"row . is {bad}"):
            linear_probe.read_targets(Dataset.from_dict({"label": labels}), "label")
    assert linear_probe.read_targets(Dataset.from_dict({"label": [True, False]}), "label").tolist() == [1, 0]


# VQA


@pytest.mark.parametrize("matches", range(11))
def test_the_soft_score_is_the_mean_over_nine_of_ten(matches):
    annotators = ["yes"] * matches + ["no"] * (10 - matches)
    random.Random(0).shuffle(annotators)
    naive = np.mean([min(others.count("yes") / 3, 1) for others in combinations(annotators, 9)])
    assert vqa.soft_score("yes", annotators) == pytest.approx(naive, abs=1e-9)


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("The  Red Car!", "red car"),
        ("two", "2"),
        ("None", "0"),
        ("1,000", "1000"),
        ("1,000-2 (x)", "10002 x"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("u.s.", "us"),
        ("it's 10:30", "it's 10:30"),
        ("black/white", "black white"),
        ("t-shirt", "t shirt"),
        ("t-shirt - blue", "tshirt blue"),
        ("left,right", "left right"),
        ("a-b", "b"),
        ("what ?", "what"),
        ("it`s", "it s"),
        ("50%", "50%"),
        ("$5.00", "$5.00"),
        ("rock & roll", "rock & roll"),
        ("#1", "#1"),
        ("50°", "50°"),
        ("*", "*"),
        ("dont", "don't"),
        ("Wouldnt've", "wouldn't've"),
        ("yall'll", "y'all'll"),
        ("twas", "'twas"),
        ("somebody'd", "somebodyd"),
        ("an apple\tand\na pear", "apple and pear"),
    ],
)
def test_answers_are_normalised_as_by_the_official_script(answer, expected):
    assert vqa.normalise_answer(answer) == expected


def test_answers_are_read_in_both_forms():
    strings = [["A dog"] * 4, ["two"] * 4]
    objects = [[{"answer": answer, "answer_id": 1} for answer in row] for row in strings]
    none = [[{"answer": "a"}] * 3 + [{"answer": None}]] * 2
    dataset = Dataset.from_dict({"strings": strings, "objects": objects, "few": [["a"] * 3] * 2, "none": none})
    assert vqa.read_answers(dataset, "strings") == vqa.read_answers(dataset, "objects") == [["dog"] * 4, ["2"] * 4]
    with pytest.raises(ValueError, match="row 0 must list at least 4 answers"):
        vqa.read_answers(dataset, "few")
    with pytest.raises(ValueError, match="row 0 holds .*None.*, not an answer"):
        vqa.read_answers(dataset, "none")


def test_the_vocabulary_is_of_the_most_common_answers():
    answers = [["b", "b", "a"], ["b", "c", "b"], ["d", "d", "a"], ["a", "a", "d"]]
    assert vqa.most_frequent_answers(answers, 2) == ["b", "a"]
    scores = vqa.score_table([["b"] * 4, ["c"] * 4], ["b", "a"]).to_dense()
    assert scores.tolist() == [[1, 0], [0, 0]]


def test_the_probe_learns_what_no_linear_one_can():
    # The answer is whether image and question have the same sign.
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1000, 2, generator=generator).sign() + 0.1 * torch.randn(1000, 2, generator=generator)
    targets = (features[:, 0] * features[:, 1] > 0).long()
    scores = torch.eye(2)[targets].to_sparse()
    probe = vqa.fit_answers(features, scores, hidden_dim=64, num_epochs=60, seed=0, device="cpu")
    assert (vqa.predict(probe, features, "cpu") == targets).double().mean() > 0.95


def test_vqa_end_to_end(tiny_model, tiny_processor, tmp_path):
    colors = ["red", "green", "blue", "white"]
    rows = {
        "image": [Image.new("RGB", (32, 32), color) for color in colors * 2],
        "image_id": [*range(4)] * 2,
        "question": ["which color is this?"] * 4 + ["is this red?"] * 4,
        "answers": [[color] * 10 for color in colors] + [["yes"] * 10] + [["no"] * 10] * 3,
        "kind": ["color"] * 4 + ["yes/no"] * 4,
    }
    split = Dataset.from_dict(rows)
    DatasetDict({"train": split, "test": split}).save_to_disk(str(tmp_path))
    arguments = vqa.VQAArguments(
        model="unused",
        dataset=str(tmp_path),
        image_id_column="image_id",
        answer_type_column="kind",
        num_answers=5,
        hidden_dim=16,
        num_epochs=1,
    )
    evaluation = vqa.evaluate_vqa(tiny_model, tiny_processor, arguments)
    values = {name: metric.value for name, metric in evaluation.metrics.items()}
    # The vocabulary lacks the last of "blue", "green", "red", "white", "yes", each of which answers one question.
    assert values["best_possible"] == 7 / 8 and evaluation.counts["answers"] == 5
    assert evaluation.metrics["vqa_accuracy"].chance == 3 / 8  # always "no"
    assert values["vqa_accuracy"] == (values["vqa_accuracy_color"] + values["vqa_accuracy_yes/no"]) / 2
    by_row = vqa.embed_questions(tiny_model, tiny_processor, split.remove_columns("image_id"), without_id(arguments))
    by_image = vqa.embed_questions(tiny_model, tiny_processor, split, arguments)
    # Batches of another size round the last bits of float32 in another way.
    torch.testing.assert_close(by_image, by_row, rtol=0, atol=1e-5)


def without_id(arguments: vqa.VQAArguments) -> vqa.VQAArguments:
    return vqa.VQAArguments(model="unused", dataset=arguments.dataset)


# Completeness


def test_swaps_name_what_the_image_does_not_have():
    dataset = Dataset.from_dict(
        {
            "caption": ["A red Dog and a cat", "a category of dogs", "a green bird"],
            "objects": [["dog", "cat"], ["cat", "dog"], ["bird"]],
            "attributes": [["red"], None, ["green"]],
        }
    )
    swaps = completeness.find_swaps(dataset, ["objects", "attributes"], seed=0)
    found = [(swap.row, swap.kind, swap.negative_caption) for swap in swaps]
    # Of row 1 no word stands alone in its caption.
    assert found[0] == (0, "objects", "A red bird and a cat") and found[1] == (0, "objects", "A red Dog and a bird")
    assert found[2][0] == 2 and found[2][2] in ("a green cat", "a green dog")
    assert found[3:] == [(0, "attributes", "A green Dog and a cat"), (2, "attributes", "a red bird")]
    assert swaps == completeness.find_swaps(dataset, ["objects", "attributes"], seed=0)
    with pytest.raises(ValueError, match="no caption names a word"):
        completeness.find_swaps(dataset.select([1]), ["objects"], seed=0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"caption": ["a dog", None]}, "caption_column of row 1 is None, not text"),
        ({"words": [["dog"], "dog"]}, "word_columns='words' of row 0 holds"),
        ({"words": [["dog"], [None]]}, "word_columns='words' of row 1 holds"),
    ],
)
def test_rows_without_words_are_named(changes, message):
    rows = {"caption": ["a dog", "a cat"], "words": [["dog"], ["cat"]], **changes}
    rows["words"] = ["dog", "dog"] if "dog" in rows["words"] else rows["words"]
    with pytest.raises(ValueError, match=message):
        completeness.find_swaps(Dataset.from_dict(rows), ["words"], seed=0)


def test_false_captions_that_are_missing_are_named():
    rows = {"caption": ["a dog", "a cat"], "false": ["a cat", None]}
    with pytest.raises(ValueError, match="negative_caption_column of row 1 is None, not text"):
        completeness.read_swaps(Dataset.from_dict(rows), "false", None)


def test_words_with_signs_are_swapped_as_they_are():
    assert completeness.swap_word("a c++ book, c++!", "c++", r"\1 b") == r"a \1 b book, \1 b!"


def test_accuracy_by_kind_by_hand():
    metrics = completeness.accuracy_by_kind(torch.tensor([True, False, True]), ["a", "a", "b"])
    values = {name: metric.value for name, metric in metrics.items()}
    assert values == pytest.approx({"accuracy": 2 / 3, "accuracy_a": 1 / 2, "accuracy_b": 1})
    assert all(metric.chance == 0.5 for metric in metrics.values())


def test_completeness_equals_a_naive_twin(tiny_model, tiny_processor, images, tmp_path):
    rows = {
        "image": images,
        "caption": ["a red dog", "a green cat", "a blue bird"],
        "words": [["red", "dog"], ["green", "cat"], ["blue", "bird"]],
        "false": ["a blue dog", "a red cat", "a blue bird"],
    }
    DatasetDict({"test": Dataset.from_dict(rows)}).save_to_disk(str(tmp_path))

    def evaluate(**columns):
        arguments = completeness.CompletenessArguments(model="unused", dataset=str(tmp_path), **columns)
        return completeness.evaluate_completeness(tiny_model, tiny_processor, arguments)

    by_data = evaluate(negative_caption_column="false").metrics["accuracy"].value
    inputs = tiny_processor(images=images, text=rows["caption"] + rows["false"], return_tensors="pt")
    with torch.no_grad():
        logits = tiny_model(**inputs).logits_per_image
    # The third false caption is the true one: a tie, which counts against the model.
    expected = sum(logits[row, row].item() > logits[row, 3 + row].item() for row in range(2)) / 3
    assert by_data == pytest.approx(expected)
    assert evaluate(word_columns=["words"]).counts == {"images": 3, "swaps": 6}


# Codes


IMAGES = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0], [0.0, 0.25, 0.75, 0.0, 0.0]])
CAPTIONS = torch.tensor([[0.5, 0.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]])


def counted(weights: torch.Tensor, batch_size: int) -> codes.CodeCounts:
    return codes.count_codes(Features(part, part) for part in weights.split(batch_size))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_codes_by_hand(batch_size):
    images, captions = counted(IMAGES, batch_size), counted(CAPTIONS, batch_size)
    pairs = torch.tensor([[0, 0], [1, 1], [1, 2]])
    metrics = codes.code_metrics(images, captions, pairs, seed=0, codebook=torch.eye(5))
    values = {name: metric.value for name, metric in metrics.items()}
    shares = np.array([0.25, 0.375, 0.375])
    entropy = -(shares * np.log(shares)).sum() / np.log(5)
    expected = {
        "active_per_image": 2,
        "active_per_caption": 4 / 3,
        "effective_per_image": (2 + 4 / 3**0.75) / 2,
        "effective_per_caption": (2 + 1 + 1) / 3,
        "dead_codes": 1 / 5,
        "dead_for_images": 2 / 5,
        "dead_for_captions": 1 / 5,
        "shared_codes": 3 / 4,
        "usage_entropy_images": entropy,
        "pair_overlap": (1 / 3 + 0 + 1 / 2) / 3,
        "similarity_from_shared_codes": 1,  # codes at right angles
    }
    # usage_entropy clamps shares at 1e-12.
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    # With two images the random partner is the other one.
    assert metrics["pair_overlap"].chance == pytest.approx((1 / 3 + 0 + 1 / 2) / 3)


def test_jaccard_equals_that_of_sets():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(20, 37, generator=generator) < 0.3 for _ in range(2))
    first[0] = second[0] = False
    naive = []
    for row, other in zip(first, second, strict=True):
        a, b = set(row.nonzero().flatten().tolist()), set(other.nonzero().flatten().tolist())
        naive.append(len(a & b) / len(a | b) if a | b else 0)
    weights = [csr_array(sets.float().numpy()) for sets in (first, second)]
    assert codes.jaccard(*weights) == pytest.approx(naive, abs=1e-9)


def test_shares_of_similarity_equal_those_of_explain(tiny_model, inputs):
    explained = tiny_model.explain(**inputs)
    features = tiny_model(**inputs)
    weights = [csr_array(w.detach().numpy()) for w in (features.image_code_weights, features.text_code_weights)]
    total, same = codes.similarities(*weights, tiny_model.codebook.detach().numpy())
    scale = tiny_model.logit_scale.exp().item()
    for ours, logits in ((total, explained.logits_per_image), (same, explained.same_code_logits)):
        assert scale * ours == pytest.approx(logits.diagonal().tolist(), abs=1e-5)  # float32 there


def test_random_partners_are_other_images_of_every_kind():
    pairs = torch.stack([torch.arange(5).repeat(400), torch.arange(2000)], dim=1)
    others = codes.random_partners(pairs, 5, seed=0)
    assert not (others == pairs[:, 0]).any()
    counts = others.bincount()
    assert len(counts) == 5 and counts.min() > 300  # 400 expected, with a standard deviation of 18
    with pytest.raises(ValueError, match="at least 2 images"):
        codes.random_partners(pairs, 1, seed=0)


def test_a_model_without_codes_or_items_is_refused():
    with pytest.raises(ValueError, match="needs a model with codes"):
        codes.count_codes([Features(IMAGES, None)])
    with pytest.raises(ValueError, match="nothing to embed"):
        codes.count_codes([])
