"""Model cards of converted and newly started models."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData


_TEMPLATES = Path(__file__).parent


def write_model_card(
    folder: str | Path, template: str, *, licence: str | None = None, base_model: str | None = None, **facts: object
) -> None:
    """
    Writes `README.md`, the model card, into a model's folder.

    Args:
        folder: the model's folder.
        template: file name of a Jinja template beside this module.
        licence: identifier of the licence on the Hub, where it is known.
        base_model: name of the checkpoint that the model starts from, if it has one.
        facts: what the template's variables stand for.
    """
    data = ModelCardData(
        license=licence,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["fdt", "clip", "custom_code"],
        base_model=base_model,
    )
    card = ModelCard.from_template(data, template_path=str(_TEMPLATES / template), **facts)
    card.save(Path(folder) / "README.md")
