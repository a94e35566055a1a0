"""From configs to objects: every field, networks of one's own, what is refused."""

import dataclasses
import importlib
import pathlib

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import default, digits, saved
from deepsad_jax import detectors, networks, objectives, training, values
from deepsad_jax.data import protocol
from deepsad_jax.detectors import hybrid
from experiments import build, workdir

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = {
    "digits": (),
    "breast_cancer": (),
    "mnist": (),
    "fmnist": (),
    "cifar10": (),
    "odds": ("thyroid",),
}
HERE = __name__


class Tower(nn.Module):
    widths: tuple[int, ...] = (8,)
    rep_dim: int = 4

    @nn.compact
    def __call__(self, x, train):
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width, use_bias=False)(x))
        return nn.Dense(self.rep_dim, use_bias=False)(x)


class Light(nnx.Module):
    def __init__(self, columns=30, *, rngs):
        self.layer = nnx.Linear(columns, 3, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


def make_tower(size):
    if size < 1:
        raise RuntimeError(f"no tower of size {size}")
    return Tower((size,))


def make_local():
    class Local(Tower):
        pass

    return Local()


def init(key, x):
    return {"w": jnp.ones((x.shape[-1], 2))}


def apply(params, x):
    return x @ params["w"]


PAIR, TOWER, NUMBER = (init, apply), Tower((5,)), 3
local_loss = lambda embeddings, semi_targets, center: embeddings[:, 0]  # noqa: E731


def loss(embeddings, semi_targets, center, *, power=2.0):
    return jnp.sum(jnp.abs(embeddings - center) ** power, axis=-1)


def no_loss(embeddings):
    return embeddings[:, 0]


def scalar_loss(embeddings, semi_targets, center):
    return jnp.mean(embeddings) + semi_targets["none"]


def late(steps, peak, epochs=10):
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, 2 * steps, epochs * steps)
    return optax.adamw(schedule)


def config_of(name="breast_cancer", **overrides):
    config = importlib.import_module(f"configs.{name}").get_config(*CONFIGS[name])
    for field, value in overrides.items():
        section, *inner = field.split(".")
        if inner:
            config[section][inner[0]] = value
        else:
            config[section] = value
    return config


def options_of(**overrides):
    return build.experiment(config_of(**overrides)).options


def test_every_config_builds_and_is_valid():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert files == {*CONFIGS, "default", "saved", "__init__"}
    for name in CONFIGS:
        config = config_of(name)
        build.check(config)
        assert config.network in ("", *networks.PAPER)


@pytest.mark.parametrize("method", detectors.METHODS)
def test_the_default_config_is_the_defaults_of_the_options(method):
    config = default.get_config(method)
    config.data.name, config.train.batch_size = "breast_cancer", 64
    config.pretrain.batch_size = 64
    config.data.ratio_known_outlier = 0.05
    found, expected = build.experiment(config).options, detectors.METHODS[method]()
    small = {
        stage: dataclasses.replace(getattr(expected, stage), batch_size=64)
        for stage in ("train", "pretrain")
        if hasattr(expected, stage)
    }
    if hasattr(expected, "record_groups"):  # which a run tells of, and a fit does not
        small["record_groups"] = True
    assert found == dataclasses.replace(expected, **small)


def test_every_option_of_a_method_follows_its_field():
    changes = {
        "deep_sad": {
            "eta": 2.0,
            "center": "without_anomalies",
            "train.record_groups": False,
            "dtype": "bfloat16",
        },
        "deep_svdd": {"train.loss": "soft_boundary", "train.nu": 0.3},
        "m2": {"m2.alpha": 0.7, "dtype": "bfloat16"},
        "ssad": {
            **{"ssad.kappa": 0.5, "ssad.C_unlabeled": 2.0, "ssad.C_normal": 3.0},
            **{"ssad.C_anomaly": 4.0, "kernel.name": "poly", "kernel.gamma": 0.3},
            **{"kernel.coef0": 0.5, "kernel.degree": 2, "selection": "none"},
            "kernel.components": 30,
        },
        "ocsvm": {"ocsvm.nu": 0.2, "kernel.name": "linear", "selection": "none"},
        "kde": {"kde.kernel": "tophat", "kde.bandwidth": 0.3, "selection": "none"},
        "isoforest": {"isoforest.n_trees": 7, "isoforest.n_samples": 50},
    }
    for method, fields in changes.items():
        options = options_of(method=method, **fields)
        for path, value in fields.items():
            name = path.split(".")[-1]
            name = {"name": "kernel"}.get(name, name)
            assert getattr(options, name) == value, path


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"encoder": "Tower"}, Tower()),
        (
            {"encoder": "Tower", "encoder_options.widths": (6, 5)},
            Tower((6, 5)),
        ),
        ({"encoder": "make_tower", "encoder_options.size": 7}, Tower((7,))),
        ({"encoder": "TOWER"}, TOWER),
        ({"encoder": "PAIR"}, PAIR),
        ({"encoder": "Light"}, Light),
    ],
)
def test_networks_of_ones_own_are_found_by_name(fields, expected):
    fields = {**fields, "encoder": f"{HERE}:{fields['encoder']}"}
    options = options_of(**fields)
    assert options.encoder == expected and options.decoder is None
    assert list(options.stages()) == ["train"]
    (own,) = options.objectives((30,))
    # Equal ones are equal: programs are found again, and the model says what it is.
    assert own == options_of(**fields).objectives((30,))[0]
    assert values.from_json(values.to_json(own)) == own


def test_nnx_modules_take_options():
    options = options_of(encoder=f"{HERE}:Light", **{"encoder_options.columns": 30})
    (own,) = options.objectives((30,))
    again = options_of(encoder=f"{HERE}:Light", **{"encoder_options.columns": 30})
    assert own == again.objectives((30,))[0]


def test_registered_names_are_networks_too():
    pair = networks.PAPER["digits_LeNet"]
    named = build.experiment(
        config_of("digits", network="", encoder="digits_LeNet")
    ).options
    assert named.pair((8, 8, 1)) == pair
    # An own encoder with a decoder of ours, with another slope.
    options = build.experiment(
        config_of(
            "digits",
            **{"network": "", "encoder": f"{HERE}:Tower", "slope": 0.2},
            **{"encoder_options.rep_dim": 32, "decoder": "digits_LeNet"},
        )
    ).options
    assert options.decoder == pair.decoder.clone(slope=0.2)
    assert list(options.stages()) == ["pretrain", "train"]


def test_no_decoder_is_none_or_nothing():
    for decoder in (None, ""):
        config = config_of(encoder=f"{HERE}:Tower", decoder=decoder)
        assert "pretrain" not in build.experiment(config).options.stages()
        assert config.decoder == ""
    # Ours have theirs.
    assert "pretrain" in options_of(decoder=None).stages()


def test_slopes_reach_both_networks_of_every_kind():
    for name in ("digits", "breast_cancer"):
        experiment = build.experiment(config_of(name, slope=0.1))
        shape = experiment.problem.x_train.shape[1:]
        assert experiment.options.pair(shape) == networks.for_shape(shape).clone(
            slope=0.1
        )
    assert options_of(slope=0.01).encoder is None


def test_losses_are_named_with_their_options():
    options = options_of(loss=f"{HERE}:loss", **{"loss_options.power": 3.0})
    assert options.loss.func is loss and options.loss.keywords == {"power": 3.0}
    assert options_of(loss=f"{HERE}:loss").loss is loss
    assert options_of(loss="hypersphere").loss == "hypersphere"
    margin = options_of(loss="deviation", **{"loss_options.margin": 2.0}).loss
    assert margin.func is objectives.NAMED["deviation"]
    assert margin.keywords == {"margin": 2.0}
    assert options_of(**{"train.loss": "deviation"}).loss == "deviation"


def test_optimizers_are_named_with_their_options():
    options = options_of(
        optimizer="adamw",
        **{"optimizer_options.learning_rate": 1e-3, "optimizer_options.b1": 0.8},
    )
    made = options.train.optimizer
    assert made == training.Optimizer(
        optax.adamw, (("b1", 0.8), ("learning_rate", 1e-3))
    )
    assert options.pretrain.optimizer == made and not options.train.needs_steps
    own = options_of(optimizer=f"{HERE}:late", **{"optimizer_options.peak": 1e-3})
    assert own.train.optimizer.function is late and own.train.fixes_steps


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": "nope:Net"}, "config.encoder is 'nope:Net', which cannot be imp"),
        ({"decoder": ":Nope"}, "config.decoder is '.*:Nope', which cannot be imported"),
        ({"encoder": "vgg"}, "config.encoder is 'vgg'; it must be one of .*, or modul"),
        ({"decoder": "vgg"}, "config.decoder is 'vgg'; it must be one of .*, or modul"),
        (
            {"encoder": ":NUMBER"},
            "config.encoder is 3; it must be a Linen module, an N",
        ),
        (
            {"encoder": ":Tower", "encoder_options.width": 3},
            "config.encoder is .*encoder_options included .*unexpected keyword .*width",
        ),
        (
            {"encoder": ":Light", "encoder_options.rows": 3},
            "config.encoder is .*encoder_options included .*unexpected keyword .*rows",
        ),
        (
            {"encoder": ":make_tower"},
            "config.encoder is .*encoder_options included .*missing .*: 'size'",
        ),
        (
            {"encoder": ":make_tower", "encoder_options.size": 0},
            r"config.encoder cannot be made with its encoder_options \(no tower of siz",
        ),
        (
            {"encoder": ":make_local"},
            "config.encoder cannot be saved: make_local.*Local",
        ),
        (
            {"encoder": ":Tower", "network": "cardio_mlp"},
            "config.encoder is .* and network is 'cardio_mlp'; give one",
        ),
        (
            {"network": f"{HERE}:Tower"},
            "config.network is .*; it must be one of digits",
        ),
        ({"encoder": "cardio_mlp"}, r"config.encoder cardio_mlp takes .* \(21,\), but"),
        (
            {"encoder": ":Tower", "decoder": "cardio_mlp"},
            r"reconstruction has shape \(2, 21\), but x has shape \(2, 30\)",
        ),
        (
            {"loss": "huber"},
            "config.loss is 'huber'; it must be one of deep_sad, hyper",
        ),
        ({"loss": ":nope"}, "config.loss is '.*:nope', which cannot be imported"),
        ({"loss": ":no_loss"}, "config.loss is .*:no_loss', which does not take what"),
        ({"loss": ":NUMBER"}, "config.loss is .*:NUMBER', which does not take what it"),
        (
            {"loss": ":local_loss"},
            "config.loss cannot be saved: <lambda> has no import",
        ),
        (
            {"loss": ":loss", "loss_options.gamma": 1.0},
            "config.loss is .*, loss_options included .*unexpected keyword .*gamma",
        ),
        (
            {"loss": "hypersphere", "loss_options.gamma": 1.0},
            "config.loss is 'hypersphere', .*loss_options included .*gamma",
        ),
        (
            {"loss": ":scalar_loss"},
            r"encoder, decoder or loss of your own cannot be computed .*\(30,\)",
        ),
        ({"optimizer": "adamx"}, "config.optimizer is 'adamx'; it must be the name of"),
        (
            {"optimizer": "adam"},
            "config.optimizer is 'adam', .*missing .*learning_rate",
        ),
        (
            {"optimizer": ":late", "optimizer_options.top": 1},
            "config.optimizer is .*optimizer_options included",
        ),
        (
            {
                "optimizer": ":late",
                "optimizer_options.peak": 1.0,
                "optimizer_options.epochs": 1,
            },
            "config.optimizer cannot be made with its optimizer_options .*decay_steps",
        ),
        (
            {"optimizer": ":no_loss", "optimizer_options.embeddings": np.eye(2)},
            "optimizer_options",
        ),
        (
            {"method": "m2", "encoder": ":PAIR"},
            "config.encoder is a tuple; m2 takes Lin",
        ),
        (
            {"method": "autoencoder", "encoder": ":Tower"},
            "config.decoder is None; an encoder of your own needs one",
        ),
        ({"encoder": 3}, "config.encoder is 3; it must be a text"),
        ({"loss": None}, "config.loss is None; it must be a text"),
        ({"encoder_options": 3}, "config.encoder_options is 3; it must be a section"),
        ({"hybrid": 1}, "config.hybrid is 1; it must be True or False"),
        ({"nope": 3}, "config has no field 'nope'; its fields are center, checkp"),
        ({"checkpoint.keep": 0}, "config.checkpoint.keep is 0; it must be at least 1"),
        ({"dtype": "float64"}, "config.dtype is 'float64'; it must be float32 or bfl"),
        (
            {"data.protocol": "adbench", "data.ratio_pollution": 0.1},
            "config.data.ratio_pollution is 0.1, which the protocol adbench does not",
        ),
        (
            {"data.protocol": "adbench", "data.normal_class": 1},
            "config.data.normal_class is 1, which the protocol adbench does not know",
        ),
    ],
)
def test_wrong_names_and_options_get_one_sentence(fields, message):
    fields = {
        name: f"{HERE}{value}" if isinstance(value, str) and value[:1] == ":" else value
        for name, value in fields.items()
    }
    config = default.get_config()
    config.data.name, config.data.ratio_known_outlier = "breast_cancer", 0.05
    for name, value in fields.items():
        section, *inner = name.split(".")
        with config.ignore_type():
            if inner:
                config[section][inner[0]] = value
            else:
                config[section] = value
    with pytest.raises(ValueError, match=message) as caught:
        build.experiment(config)
    assert "\n" not in str(caught.value) and not str(caught.value).endswith(".")


def test_a_missing_field_is_named():
    config = digits.get_config()
    with config.unlocked():
        del config["slope"]
    with pytest.raises(ValueError, match="config.slope is missing; configs/default.py"):
        build.check(config)


def test_a_saved_config_is_the_config(tmp_path):
    config = config_of(
        "digits",
        **{"network": "", "encoder": f"{HERE}:Tower", "encoder_options.widths": (3, 2)},
        **{"train.milestones": (1, 2), "optimizer": "sgd"},
        **{"optimizer_options.learning_rate": 0.1},
    )
    workdir.write_json(tmp_path / "config.json", config.to_dict())
    again = saved.get_config(str(tmp_path / "config.json"))
    assert again.to_dict() == config.to_dict()
    assert build.experiment(again).options == build.experiment(config).options


def test_hybrids_need_codes_and_shallow_methods_take_no_network():
    assert isinstance(options_of(method="kde", hybrid=True), hybrid.Hybrid)
    for fields, message in (
        ({"hybrid": True}, "config.hybrid is for the shallow baselines; deep_sad is"),
        (
            {"method": "kde", "hybrid": True, "pretrain.enabled": False},
            "config.hybrid needs the codes of an autoencoder",
        ),
        (
            {"method": "kde", "load_model": "tests"},
            "config.load_model is for networks and hybrids, but kde is neither",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            options_of(**fields)


def test_test_labels_choose_nothing_unless_they_are_asked_to():
    for method in detectors.METHODS:
        config = config_of(method=method)
        made = build.experiment(config)
        assert config.selection == "" and made.run.selection_set is None
    config.method, config.selection = "ssad", "test_auc"
    made = build.experiment(config)
    few, labels = made.run.selection_set
    assert len(few) == len(labels) < len(made.problem.x_test) / 8


def test_a_protocol_is_that_of_the_data_section():
    fields = {"normal_class": 3, "ratio_pollution": 0.1, "n_known_outlier_classes": 2}
    config = config_of("digits", **{f"data.{n}": value for n, value in fields.items()})
    expected = protocol.Protocol(
        known_outlier_class=4, ratio_known_outlier=0.1, **fields
    )
    assert build.protocol_of(config) == expected
    made = build.experiment(config)
    assert made.label == (
        "the digit: 3 is normal (183 rows), 9 other classes are anomalies (1614 rows)"
    )
    assert build.experiment(config_of()).label == (
        "malignant: 0 normal (357 rows), 1 anomaly (212 rows)"
    )
