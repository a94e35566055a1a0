"""Every field of an experiment, with its default; the other configs are small deltas.

The defaults of a method's own options are those of its class in
`deepsad_jax.detectors`.
"""

import ml_collections

from deepsad_jax import training
from deepsad_jax.detectors import (
    deep_sad,
    generative,
    isolation_forest,
    kde,
    kernel_machines,
)


def get_config(method: str = "deep_sad") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    own, machine = deep_sad.DeepSAD(), kernel_machines.SSAD()

    # What is trained. With labels: deep_sad, m2 and m1_m2 (generative models),
    # supervised (a classifier), ssad. Without: deep_svdd, autoencoder, vae, ocsvm, kde,
    # isoforest.
    config.method = method
    # Whether a shallow baseline works on the codes of an autoencoder (trained as
    # `pretrain` says, or that of load_model) instead of the features.
    config.hybrid = False
    # A name of deepsad_jax.networks.PAPER; "" chooses by the shape of the data.
    config.network = ""
    # Networks of your own, as module:name of a Linen or NNX module, a function that
    # makes one, or a pair of functions; or names as above. "" takes `network`. Without
    # a decoder, an encoder of your own is not pretrained. Options go to what is called.
    # The folder of the config file is on Python's path.
    config.encoder = config.decoder = ""
    config.encoder_options = ml_collections.ConfigDict()
    config.decoder_options = ml_collections.ConfigDict()
    # A loss of your own, as module:name of a function (embeddings, semi_targets,
    # center, **loss_options) -> [batch], or a name; "" takes `train.loss`.
    config.loss = ""
    config.loss_options = ml_collections.ConfigDict()
    # A name in optax, or module:name of a function that makes an optimizer from
    # optimizer_options (and, if it takes them, `steps`, those of an epoch); "" is the
    # paper's Adam, as `pretrain` and `train` say. It serves both stages.
    config.optimizer = ""
    config.optimizer_options = ml_collections.ConfigDict()
    # Slope of the leaky ReLUs of our networks: 0.01 in the published code, 0.1 in the
    # paper's text.
    config.slope = 0.01
    # Whose embeddings' mean is the center: "all", as in the published code, or
    # "without_anomalies", as in the paper's text.
    config.center = own.center
    # Decides split, draw, initial weights and shuffling.
    config.seed = 0
    # Weight of the labeled examples in the losses of deep_sad, > 0.
    config.eta = own.eta
    # Networks of deep_sad whose mean is the score, and what judges beside them (linear,
    # forest, extra, isolation): see docs/few_labels.md. The paper has one and none.
    config.members = own.members
    config.companions = own.companions
    # Start from this model instead of pretraining: the `model` folder of an earlier
    # working directory, or a model.tar of the original implementation. With
    # train.epochs = 0 it is only evaluated: on all rows of a file that is new to it.
    config.load_model = ""
    # Devices that share each batch (data parallel); 0 takes all there are.
    config.devices = 1
    # Type of the computation, float32 or bfloat16 (for accelerators); parameters and
    # statistics are float32 in any case.
    config.dtype = own.dtype

    # How the shallow baselines choose gamma or the bandwidth: "" is train_labels (AUROC
    # of held-out known anomalies of the training set) for ssad, likelihood (5-fold
    # cross-validated) for kde, none (the value below, or a rule of thumb) for ocsvm.
    # test_auc is the paper's way: AUROC on a tenth of the test set.
    config.selection = machine.selection
    # Whether that tenth stays in the test set, as in the paper.
    config.selection_in_test = True
    config.m2 = m2 = ml_collections.ConfigDict()
    # Weight of the classification of labeled examples in m2 and m1_m2, >= 0.
    m2.alpha = generative.M2().alpha
    config.kernel = kernel = ml_collections.ConfigDict()
    # Of ssad and ocsvm: rbf, linear or poly.
    kernel.name = machine.kernel
    # For selection none; 0 takes one over the median squared distance.
    kernel.gamma = machine.gamma
    kernel.coef0 = machine.coef0
    kernel.degree = machine.degree
    # Rows that stand for all others where these are many (docs/scale.md); 0 is exact.
    kernel.components = machine.components
    config.ssad = ssad = ml_collections.ConfigDict()
    # Weight of the margin, and largest dual variable of an example of each kind.
    ssad.kappa = machine.kappa
    ssad.C_unlabeled = machine.C_unlabeled
    ssad.C_normal = machine.C_normal
    ssad.C_anomaly = machine.C_anomaly
    config.ocsvm = ocsvm = ml_collections.ConfigDict()
    # Largest share of training examples outside the boundary, in (0, 1].
    ocsvm.nu = kernel_machines.OneClassSVM().nu
    config.kde = ml_collections.ConfigDict()
    # gaussian, exponential, tophat, epanechnikov or linear.
    config.kde.kernel = kde.KDE().kernel
    # For selection none; 0 takes Scott's rule.
    config.kde.bandwidth = kde.KDE().bandwidth
    config.isoforest = isoforest = ml_collections.ConfigDict()
    isoforest.n_trees = isolation_forest.IsolationForest().n_trees
    # Examples that each tree sees.
    isoforest.n_samples = isolation_forest.IsolationForest().n_samples

    config.data = data = ml_collections.ConfigDict()
    # digits, breast_cancer, mnist, fmnist, cifar10, an ODDS table, or the path of a
    # .npz, .csv or .mat file or of a folder of .npy files (see
    # deepsad_jax/data/sources.py).
    data.name = "digits"
    # Whether such a folder, with semi_targets, is read batch by batch: docs/scale.md.
    data.stream = False
    # Folder looked in first, for NAME.npz, NAME.mat or NAME.csv; downloads go there.
    data.dir = ""
    # The column of a .csv file that holds the labels: its name, or its number from 1
    # where the file has no names; "" takes the column label, else y.
    data.label = ""
    # Who is known: paper, by the fields below, or adbench, the protocol of ADBench
    # (deepsad_jax/data/adbench.py), which takes ratio_known_outlier of the anomalies.
    data.protocol = "paper"
    # Of adbench: whether small tables are filled up before they are split, so that
    # training and test part share rows, as there.
    data.duplicates = True
    # How tables are scaled: min_max, as in the published code, or standard (mean 0,
    # deviation 1), as in the paper's text.
    data.scaling = "min_max"
    # The class that is normal; all others are anomalous.
    data.normal_class = 0
    # The class of the labeled anomalies, and from how many classes they come: with 2
    # or more, these are drawn at random.
    data.known_outlier_class = 1
    data.n_known_outlier_classes = 1
    # Shares of the whole training set that are labeled normal and anomalous.
    data.ratio_known_normal = 0.0
    data.ratio_known_outlier = 0.01
    # Share of anomalies among the unlabeled.
    data.ratio_pollution = 0.0

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    # The state of the training is saved after at least so many epochs and seconds, from
    # which the same command goes on; and how many checkpoints are kept of each stage.
    checkpoint.epochs = 10
    checkpoint.seconds = 10.0
    checkpoint.keep = 2

    # Whether the encoder starts from an autoencoder's, as in the paper. The methods
    # autoencoder and vae, and the first half of m1_m2, are trained as this stage says.
    config.pretrain = _stage(training.PRETRAIN)
    config.pretrain.enabled = True

    # The same for the stage of the method itself.
    config.train = train = _stage(training.Stage())
    # Of deep_sad: deep_sad, hypersphere or deviation; of deep_svdd: one_class or
    # soft_boundary; "" is the first of these.
    train.loss = ""
    # Share of the examples outside the soft boundary, in (0, 1).
    train.nu = own.nu
    # Whether metrics.jsonl tells of deep_sad and deep_svdd, for known normal,
    # unlabeled and known anomalous examples, the mean squared distance to the center
    # and the log-determinant of the embeddings' covariance (section 3 of the paper).
    train.record_groups = True
    return config


def _stage(stage: training.Stage) -> ml_collections.ConfigDict:
    section = ml_collections.ConfigDict()
    # Adam's learning rate, divided by 10 at each milestone (epochs counted from 0).
    section.learning_rate = stage.optimizer.learning_rate
    section.milestones = stage.optimizer.milestones
    # L2, added to the gradient as in torch.optim.Adam.
    section.weight_decay = stage.optimizer.weight_decay
    section.epochs = stage.epochs
    # Batches are always full; the surplus of an epoch is dropped.
    section.batch_size = stage.batch_size
    # When the loss is not finite: stop, or rollback to the state before that epoch and
    # go on with updates of a tenth; then from the beginning, at most five times in all.
    section.on_divergence = stage.on_divergence
    return section
