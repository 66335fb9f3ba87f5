"""FDT in MTEB, the real one: tasks of images and captions made here, scored as by the model itself."""

import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from PIL import Image

from run_scripts.evaluation.mteb_models import register_mteb_models
from run_scripts.hub.sparse_encoder import write_sparse_encoder


CAPTIONS = ["a cat", "two dogs on the grass", "Hello!", "a red kite", "snow", "seven green bottles"]
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
IMAGES = [Image.fromarray(pixels) for pixels in PIXELS]
FACTS = {
    "description": "Made in a test.",
    "reference": None,
    "dataset": {"path": "made/here", "revision": "1"},
    "eval_splits": ["test"],
    "eval_langs": ["eng-Latn"],
    "modalities": ["image", "text"],
}


class TinyZeroShot(AbsTaskZeroShotClassification):
    metadata = TaskMetadata(
        name="TinyZeroShot", type="ZeroShotClassification", category="i2t", main_score="accuracy", **FACTS
    )

    def load_data(self, num_proc: int | None = None, **kwargs) -> None:
        self.dataset = DatasetDict(test=Dataset.from_dict({"image": IMAGES, "label": list(range(6))}))
        self.data_loaded = True

    def get_candidate_labels(self) -> list[str]:
        return CAPTIONS


class TinyRetrieval(AbsTaskRetrieval):
    metadata = TaskMetadata(
        name="TinyT2IRetrieval", type="Any2AnyRetrieval", category="t2i", main_score="ndcg_at_10", **FACTS
    )

    def load_data(self, num_proc: int | None = None, **kwargs) -> None:
        split = RetrievalSplitData(
            queries=Dataset.from_dict({"id": [f"q{n}" for n in range(6)], "text": CAPTIONS}),
            corpus=Dataset.from_dict({"id": [f"d{n}" for n in range(6)], "image": IMAGES}),
            relevant_docs={f"q{n}": {f"d{n}": 1} for n in range(6)},
            top_ranked=None,
        )
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_processor) -> str:
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    write_sparse_encoder(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize(("suffix", "vectors", "dim"), [("", "embeds", 32), (" (codes)", "code_weights", 64)])
def test_scores_are_those_of_the_model(folder, tiny_model, tiny_processor, suffix, vectors, dim):
    dense, sparse = register_mteb_models("me/tiny", path=folder, license="apache-2.0")
    model = mteb.get_model(f"me/tiny{suffix}", device="cpu")
    assert model.mteb_model_meta.embed_dim == dim and model.mteb_model_meta.license == "apache-2.0"
    tasks = [TinyZeroShot(), TinyRetrieval()]
    results = mteb.evaluate(model, tasks, cache=None, co2_tracker=False, show_progress_bar=False)
    scores = {result.task_name: result.scores["test"][0] for result in results.task_results}

    with torch.inference_mode():
        outputs = tiny_model(**tiny_processor(images=IMAGES, text=CAPTIONS, return_tensors="pt"))
    images, texts = (torch.nn.functional.normalize(outputs[f"{half}_{vectors}"], dim=-1) for half in ("image", "text"))
    cosines = images @ texts.T
    accuracy = (cosines.argmax(dim=1) == torch.arange(6)).float().mean().item()
    ranks = (cosines > cosines.diagonal()).sum(dim=0)  # of each caption's own image
    assert scores["TinyZeroShot"]["accuracy"] == pytest.approx(accuracy)
    # MTEB rounds to five digits.
    ndcg = (1 / torch.log2(ranks + 2)).mean().item()
    assert scores["TinyT2IRetrieval"]["ndcg_at_10"] == pytest.approx(ndcg, abs=1e-5)
    assert 0 < ndcg < 1


def test_results_of_other_weights_are_not_taken_for_this_models(folder, tiny_model):
    first, _ = register_mteb_models("me/tiny", path=folder)
    again, _ = register_mteb_models("me/tiny", path=folder)
    tiny_model.logit_scale.data += 1
    tiny_model.save_pretrained(folder)
    other, _ = register_mteb_models("me/tiny", path=folder)
    assert first.revision == again.revision != other.revision
    mteb.get_model("me/tiny", device="cpu")


def test_models_that_cannot_give_codes_are_refused(tmp_path, tiny_model, tiny_processor):
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    register_mteb_models("me/dense", path=str(tmp_path / "model"))
    with pytest.raises(ValueError, match="must have the files of a SparseEncoder"):
        mteb.get_model("me/dense (codes)", device="cpu")
    tiny_model.text_tower.config.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="is a clip_text_model model, which has no codes"):
        register_mteb_models("me/text", path=str(tmp_path / "text"))
    with pytest.raises(ValueError, match="organization/model_name"):
        register_mteb_models("tiny", path=str(tmp_path / "model"))
