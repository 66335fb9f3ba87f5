# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Retrieval between images and captions, both ways, without ever holding the whole matrix of scores."""

import torch
from transformers import PreTrainedModel, ProcessorMixin

from run_scripts.data.source import open_source
from run_scripts.evaluation.arguments import RetrievalArguments
from run_scripts.evaluation.inputs import describe_data, embed_all_images, embed_texts, read_captions
from run_scripts.evaluation.metrics import chance_recall_of, cosine_scores, recall_of
from run_scripts.evaluation.results import Chart, Evaluation, Metric


RECALLS = (1, 5, 10)


def retrieval_ranks(
    image_embeds: torch.Tensor,
    caption_embeds: torch.Tensor,
    pairs: torch.Tensor,
    chunk_size: int = 4096,
    device: str | torch.device = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many wrong candidates come before the best right one, for every image and for every caption.

    The scores are computed in blocks of chunk_size x chunk_size. Ties count against the model.

    Args:
        image_embeds: (num_images, dim).
        caption_embeds: (num_captions, dim).
        pairs: (num_pairs, 2) integers, an image and a caption that belongs to it in each row; no pair twice.
        chunk_size: how many images, and how many captions, are compared at once.
        device: where they are compared.

    Returns:
        (num_images,) and (num_captions,) integers from 0, the best; -1 for what has no pair.

    Raises:
        ValueError: embeddings are not finite, or their sizes differ.
    """
    if image_embeds.shape[1:] != caption_embeds.shape[1:]:
        raise ValueError(f"embeddings differ in size: {image_embeds.shape[1:]} and {caption_embeds.shape[1:]}")
    if not (image_embeds.isfinite().all() and caption_embeds.isfinite().all()):
        raise ValueError("embeddings must be finite")
    best_of_image, best_of_caption = _best_right_scores(image_embeds, caption_embeds, pairs, chunk_size)
    image_ranks = torch.zeros(len(image_embeds), dtype=torch.long)
    caption_ranks = torch.zeros(len(caption_embeds), dtype=torch.long)
    for first_image in range(0, len(image_embeds), chunk_size):
        images = slice(first_image, first_image + chunk_size)
        image_block = image_embeds[images].to(device)
        row_pairs = pairs[(pairs[:, 0] >= first_image) & (pairs[:, 0] < first_image + chunk_size)]
        for first_caption in range(0, len(caption_embeds), chunk_size):
            captions = slice(first_caption, first_caption + chunk_size)
            scores = cosine_scores(image_block, caption_embeds[captions].to(device))
            is_here = (row_pairs[:, 1] >= first_caption) & (row_pairs[:, 1] < first_caption + chunk_size)
            rows, columns = (row_pairs[is_here] - torch.tensor([first_image, first_caption])).to(device).T
            scores[rows, columns] = -torch.inf  # what is right is before nothing
            is_before = scores >= best_of_image[images, None].to(device)
            image_ranks[images] += is_before.sum(dim=1).cpu()
            is_before = scores >= best_of_caption[captions].to(device)
            caption_ranks[captions] += is_before.sum(dim=0).cpu()
    image_ranks[best_of_image == -torch.inf] = -1
    caption_ranks[best_of_caption == -torch.inf] = -1
    return image_ranks, caption_ranks


def _best_right_scores(
    image_embeds: torch.Tensor, caption_embeds: torch.Tensor, pairs: torch.Tensor, chunk_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    best_of_image = torch.full((len(image_embeds),), -torch.inf)
    best_of_caption = torch.full((len(caption_embeds),), -torch.inf)
    for part in pairs.split(chunk_size):
        images, captions = part.T
        scores = (image_embeds[images].double() * caption_embeds[captions].double()).sum(dim=1).float()
        best_of_image.scatter_reduce_(0, images, scores, "amax")
        best_of_caption.scatter_reduce_(0, captions, scores, "amax")
    return best_of_image, best_of_caption


def retrieval_metrics(
    image_ranks: torch.Tensor, caption_ranks: torch.Tensor, pairs: torch.Tensor
) -> dict[str, Metric]:
    """R@1, 5, 10 and the median rank both ways, and rsum, the sum of the six recalls in per cent.

    Args:
        image_ranks, caption_ranks: as `retrieval_ranks` gives them; what has no pair is no query.
        pairs: as for `retrieval_ranks`.

    Returns:
        Metrics by name. Ranks count from 1. `rsum_rounded` adds recalls that are each rounded to 0.1 first, as the
        original does.
    """
    metrics = {}
    directions = {"image_to_text": (image_ranks, 0, caption_ranks), "text_to_image": (caption_ranks, 1, image_ranks)}
    for direction, (ranks, column, candidates) in directions.items():
        ranks = ranks[ranks >= 0]
        num_relevant = pairs[:, column].unique(return_counts=True)[1]
        for k in RECALLS:
            chance = chance_recall_of(num_relevant, len(candidates), k)
            metrics[f"{direction}_R@{k}"] = Metric(recall_of(ranks, k), chance)
        metrics[f"{direction}_median_rank"] = Metric(ranks.double().quantile(0.5).item() + 1, unit="number")
    recalls = [100 * metrics[f"{direction}_R@{k}"].value for direction in directions for k in RECALLS]
    chances = [100 * metrics[f"{direction}_R@{k}"].chance for direction in directions for k in RECALLS]
    metrics["rsum"] = Metric(sum(recalls), sum(chances), unit="number")
    metrics["rsum_rounded"] = Metric(sum(round(recall, 1) for recall in recalls), unit="number")
    return metrics


def list_pairs(captions: list[list[str]], merge_equal: bool) -> tuple[list[str], torch.Tensor]:
    """All captions in order, and (num_pairs, 2) integers, image and caption.

    Args:
        captions: those of every image.
        merge_equal: whether equal captions are one, which then belongs to every image that has it.
    """
    if not merge_equal:
        pairs = [image for image, texts in enumerate(captions) for _ in texts]
        texts = [text for texts in captions for text in texts]
        return texts, torch.stack([torch.tensor(pairs), torch.arange(len(texts))], dim=1)
    positions = {text: None for texts in captions for text in texts}
    positions = {text: position for position, text in enumerate(positions)}
    pairs = {(image, positions[text]): None for image, texts in enumerate(captions) for text in texts}
    return list(positions), torch.tensor(list(pairs))


def pair_retrieval(image_embeds: torch.Tensor, caption_embeds: torch.Tensor, captions: list[str]) -> dict[str, Metric]:
    """`retrieval_metrics` of rows that are one image and one caption each; equal captions are right for each other's.

    Args:
        image_embeds, caption_embeds: (num_rows, dim), rows of length 1.
        captions: of every row.

    Raises:
        ValueError: there is not one caption for each row, or as `retrieval_ranks` does.
    """
    if not len(image_embeds) == len(caption_embeds) == len(captions):
        raise ValueError(
            f"expected a caption for each image, got {len(image_embeds)} images, {len(caption_embeds)} embeddings of "
            f"captions and {len(captions)} captions"
        )
    rows_of: dict[str, list[int]] = {}
    for row, caption in enumerate(captions):
        rows_of.setdefault(caption, []).append(row)
    groups = [torch.tensor(rows) for rows in rows_of.values()]
    pairs = torch.cat([torch.cartesian_prod(rows, rows) for rows in groups])
    return retrieval_metrics(*retrieval_ranks(image_embeds, caption_embeds, pairs), pairs)


def evaluate_retrieval(model: PreTrainedModel, processor: ProcessorMixin, arguments: RetrievalArguments) -> Evaluation:
    """Find the captions of every image among all captions, and the images of every caption among all images.

    An image without a caption is no query, but stays among the candidates.
    """
    dataset = open_source(arguments)
    captions = read_captions(dataset)
    texts, pairs = list_pairs(captions, arguments.merge_equal_captions)

    image_embeds = embed_all_images(model, processor, dataset, arguments.batch_size)
    caption_embeds = embed_texts(model, processor, texts, arguments.batch_size)
    device = model.device if model.device.type == "cuda" else "cpu"  # float64, which not every device has
    image_ranks, caption_ranks = retrieval_ranks(image_embeds, caption_embeds, pairs, device=device)
    return Evaluation(
        metrics=retrieval_metrics(image_ranks, caption_ranks, pairs),
        headline=arguments.metric,
        data=[describe_data(arguments.dataset, arguments.split, dataset, ["image", "caption"])],
        counts={
            "images": len(image_embeds),
            "captions": len(texts),
            "images_without_caption": sum(not texts for texts in captions),
            "captions_equal_to_another": len(texts) - len(set(texts)),
        },
        charts=[chart_recalls(image_ranks, caption_ranks)],
    )


def chart_recalls(image_ranks: torch.Tensor, caption_ranks: torch.Tensor) -> Chart:
    """Recall by the number of candidates looked at."""
    places = [k for k in (1, 2, 3, 5, 10, 20, 30, 50, 100) if k <= max(len(image_ranks), len(caption_ranks))]
    series = {"image to text": image_ranks[image_ranks >= 0], "text to image": caption_ranks[caption_ranks >= 0]}
    return Chart(
        title="Recall by number of candidates",
        kind="line",
        series={name: [(k, recall_of(ranks, k)) for k in places] for name, ranks in series.items()},
        x_label="candidates looked at",
        y_label="recall",
        log_x=True,
    )
