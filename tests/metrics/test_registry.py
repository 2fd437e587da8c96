"""A metric is one line in a table: it is then computed, described and ranked the right way."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from tar3d.config import EvalProtocol
from tar3d.evaluation.image_pairs import ImageFolders, RenderedImages
from tar3d.evaluation.image_scores import CLIP_SCORES, SET_SCORES, TEXT_SCORES
from tar3d.evaluation.mesh_pairs import load_protocol
from tar3d.evaluation.mesh_report import compare_sets
from tar3d.metrics.geometry import describe, point_scores
from tar3d.metrics.images import IMAGE_MAPS, PIXEL_METRICS, image_scores
from tar3d.metrics.metric import Metric
from tar3d.metrics.points import CLOUD_METRICS, DISTANCE_METRICS
from tar3d.metrics.registry import find_metric, image_formulas, is_lower_better
from tar3d.metrics.volumes import VOLUME_METRICS


def earth_mover(clouds) -> float:
    distance = cdist(clouds.pred, clouds.truth)
    return float(distance[linear_sum_assignment(distance)].mean())


def test_a_metric_of_clouds_is_one_line(monkeypatch):
    monkeypatch.setitem(CLOUD_METRICS, "emd", Metric("earth mover", "lower", earth_mover))
    cloud = np.random.default_rng(0).normal(size=(20, 3))
    assert point_scores(cloud, cloud + [0.5, 0, 0], (0.1,))["emd"] == pytest.approx(0.5)
    assert "emd                    = earth mover; lower is better" in describe(EvalProtocol())
    near, far = ([{"id": "a", "emd": value}] for value in (0.2, 0.5))
    assert compare_sets(near, far, "emd", 0)["share"] == 1
    assert compare_sets(far, near, "emd", 0)["share"] == 0


def test_a_metric_with_a_threshold_is_one_line(monkeypatch):
    far = Metric("share of p beyond tau", "lower", lambda d, tau: float((d.to_truth > tau).mean()))
    monkeypatch.setitem(DISTANCE_METRICS, "outliers@tau", far)
    scores = point_scores(np.zeros((2, 3)), np.ones((2, 3)), (0.1, 2.0))
    assert scores["outliers@0.1"] == 1 and scores["outliers@2"] == 0
    assert is_lower_better("aligned_surface_outliers@0.1")


def test_a_metric_of_images_is_one_line(monkeypatch):
    def mean_error(pred, truth, foreground):
        error = np.abs(pred.astype(float) - truth).mean(-1)
        return float(error.mean()), float(error[foreground].mean())

    monkeypatch.setitem(PIXEL_METRICS, "mae", Metric("mean |a - b|", "lower", mean_error))
    black = np.zeros((12, 12, 3), dtype=np.uint8)
    scores = image_scores(black + np.uint8(4), black, np.eye(12, dtype=bool))
    assert scores["mae"] == scores["mae_fg"] == 4
    assert image_formulas()["mae"] == "mean |a - b|; lower is better"
    assert is_lower_better("shaded_mae_fg")


@pytest.mark.parametrize(
    ("score", "lower"),
    [
        ("chamfer", True),
        ("aligned_surface_chamfer_squared", True),
        ("floor_hausdorff95", True),
        ("fscore@0.02", False),
        ("surface_precision@1e-05", False),
        ("surface_normal_consistency", False),
        ("aligned_iou_near", False),
        ("shaded_lpips_fg", True),
        ("normal_psnr", False),
        ("clip_text_fg", False),
        ("fid_clip", True),
        ("mmd", True),
        ("coverage", False),
    ],
)
def test_directions(score, lower):
    assert is_lower_better(score) == lower


@pytest.mark.parametrize("score", ["emd", "p2s", "iou@0.5", "x_psnr", "pred_faces", "chamfer_"])
def test_a_name_in_no_table_is_refused(score):
    with pytest.raises(ValueError, match="in no table"):
        compare_sets([{"id": "a", score: 1.0}], [{"id": "a", score: 2.0}], score, 0)


def test_a_headline_is_checked_before_anything_is_scored():
    with pytest.raises(ValueError, match="'emd' is in no table"):
        load_protocol("tar3d", ["headline=[chamfer,emd]"])


def test_a_metric_that_is_best_in_the_middle_has_no_order():
    with pytest.raises(ValueError, match=r"0\.5 is the best"):
        is_lower_better("one_nn_accuracy")
    assert "0.5 is best" in find_metric("one_nn_accuracy").describe()


def test_the_registry_knows_the_images_and_scores_of_the_evaluation():
    assert {*RenderedImages.maps, *ImageFolders.maps} <= set(IMAGE_MAPS)
    for score in (*CLIP_SCORES, *TEXT_SCORES, *SET_SCORES, *VOLUME_METRICS):
        find_metric(score)
