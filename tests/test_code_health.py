"""Dead codes are counted and come alive again; the entropy of code usage can be raised."""

import math

import pytest
import torch

from modeling_fdt import FDTModel
from run_scripts.evaluation.code_usage import usage_entropy
from run_scripts.training.code_health import CodeUsage, collect_queries, reseed_codes
from tests.conftest import build_tiny_config
from tests.test_trainer import get_logged, make_pairs, make_trainer


def build_model(temperature: float = 1.0) -> FDTModel:
    torch.manual_seed(0)
    return FDTModel(build_tiny_config(grounding_temperature=temperature))


def test_steps_since_a_code_was_used():
    usage = CodeUsage(4, torch.device("cpu"))
    batches = [  # images and captions of a step
        ([[0.5, 0.5, 0, 0]], [[1.0, 0, 0, 0], [0, 1.0, 0, 0]]),
        ([[1.0, 0, 0, 0]], [[0, 0, 1.0, 0]]),
        ([[1.0, 0, 0, 0]], [[1.0, 0, 0, 0]]),
    ]
    for image_weights, text_weights in batches:
        usage.begin_step()
        usage.observe(torch.tensor(image_weights), torch.tensor(text_weights))
    assert usage.synchronize().tolist() == [0, 2, 1, 3]


def test_entropy_of_usage():
    assert usage_entropy(torch.full((8,), 0.125)).item() == pytest.approx(math.log(8))
    one = torch.tensor([2.0, 0.0, 0.0], requires_grad=True)
    entropy = usage_entropy(one)
    entropy.backward()
    assert entropy.item() == pytest.approx(0.0, abs=1e-6) and one.grad.isfinite().all()
    torch.testing.assert_close(
        usage_entropy(torch.tensor([3.0, 1.0])).item(), -0.75 * math.log(0.75) + 0.5 * math.log(2)
    )


def test_new_codes_are_queries_of_the_batch_and_the_optimiser_forgets_the_old():
    model = build_model().train()
    inputs = {name: torch.stack([pair[name] for pair in make_pairs(4)]) for name in make_pairs(1)[0]}
    inputs["attention_mask"][0, 2] = 0
    queries = collect_queries(model, inputs)
    assert queries.shape == (4 * 16 + 4 * 3 - 1, 32)  # patches and valid words
    optimizer = torch.optim.AdamW(model.parameters())
    model(**inputs).loss.backward()
    optimizer.step()
    before = model.codebook.detach().clone()
    codes = torch.tensor([3, 10, 11])
    queries = collect_queries(model, inputs)
    random_state = torch.get_rng_state()
    reseed_codes(model, optimizer, inputs, codes, seed=7)
    assert torch.equal(torch.get_rng_state(), random_state)
    others = [code for code in range(64) if code not in codes.tolist()]
    assert torch.equal(model.codebook[others], before[others])
    cosines = torch.nn.functional.normalize(model.codebook[codes], dim=-1) @ torch.nn.functional.normalize(queries).T
    torch.testing.assert_close(cosines.max(dim=-1).values, torch.ones(3))  # each is a query of the batch
    assert len(set(cosines.argmax(dim=-1).tolist())) == 3
    torch.testing.assert_close(model.codebook[codes].norm(dim=-1), before.norm(dim=-1).mean().expand(3))
    for name in ("exp_avg", "exp_avg_sq"):
        moment = optimizer.state[model.codebook][name]
        assert (moment[codes] == 0).all() and (moment[others] != 0).any()


def test_reseeding_lowers_the_number_of_dead_codes(tmp_path):
    dead = {}
    for reseed_dead_codes in (False, True):
        trainer = make_trainer(
            build_model(),
            tmp_path,
            max_steps=16,
            learning_rate=1e-3,
            dead_code_steps=4,
            reseed_dead_codes=reseed_dead_codes,
        )
        trainer.train()
        dead[reseed_dead_codes] = get_logged(trainer, "dead_codes")
    assert dead[True][:4] == dead[False][:4]  # nothing happens before the first re-seeding
    assert dead[True][-1] < dead[False][-1] - 5


@pytest.mark.parametrize("gradient_accumulation_steps", [1, 2])
def test_regulariser_raises_the_entropy_of_usage(gradient_accumulation_steps, tmp_path):
    entropies = []
    batch = {name: torch.stack([pair[name] for pair in make_pairs()]) for name in make_pairs(1)[0]}
    for weight in (0.0, 2.0):
        trainer = make_trainer(
            build_model(),
            tmp_path,
            max_steps=12,
            learning_rate=3e-3,
            usage_entropy_weight=weight,
            per_device_train_batch_size=16 // gradient_accumulation_steps,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )
        trainer.train()
        with torch.no_grad():
            outputs = trainer.model.eval()(**batch)
        weights = (outputs.image_code_weights, outputs.text_code_weights)
        entropies.append(sum(usage_entropy(w.mean(dim=0)).item() for w in weights) / 2)
    assert entropies[1] > entropies[0] + 0.3
