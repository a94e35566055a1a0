"""Every field of an experiment, with its default; the other configs are small
deltas."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # What is trained: deep_sad, or a shallow baseline: ssad, ocsvm, kde, isoforest.
    config.method = "deep_sad"
    # Whether a shallow baseline works on the codes of an autoencoder (trained as
    # `pretrain` says, or that of load_model) instead of the features.
    config.hybrid = False
    # A name of deepsad_jax.networks.ARCHITECTURES; "" chooses by the shape of the data.
    config.network = ""
    # Decides split, draw, initial weights and shuffling.
    config.seed = 0
    # Weight of the labelled examples in the Deep SAD loss, > 0.
    config.eta = 1.0
    # Start from this model instead of pretraining: the `model` folder of an earlier
    # working directory, or a model.tar of the original implementation. With
    # train.epochs = 0 it is only evaluated.
    config.load_model = ""
    # Devices that share each batch (data parallel); 0 takes all there are.
    config.devices = 1
    # Type of the computation, float32 or bfloat16 (for accelerators); parameters and
    # statistics are float32 in any case.
    config.dtype = "float32"

    # How the shallow baselines choose gamma or the bandwidth: "" is the paper's way,
    # test_auc (AUROC on a tenth of the test set) for ssad and ocsvm, likelihood (5-fold
    # cross-validated) for kde. All of them also take train_labels (AUROC of held-out
    # known anomalies of the training set) and none (the value below, or a rule of
    # thumb), which see no test labels.
    config.selection = ""
    # Whether that tenth stays in the test set, as in the paper.
    config.selection_in_test = True
    config.kernel = kernel = ml_collections.ConfigDict()
    # Of ssad and ocsvm: rbf, linear or poly.
    kernel.name = "rbf"
    # For selection none; 0 takes one over the median squared distance.
    kernel.gamma = 0.0
    kernel.coef0 = 0.0
    kernel.degree = 3
    config.ssad = ssad = ml_collections.ConfigDict()
    # Weight of the margin, and largest dual variable of an example of each kind.
    ssad.kappa = 1.0
    ssad.C_unlabeled = 1.0
    ssad.C_normal = 1.0
    ssad.C_anomaly = 1.0
    config.ocsvm = ocsvm = ml_collections.ConfigDict()
    # Largest share of training examples outside the boundary, in (0, 1].
    ocsvm.nu = 0.1
    config.kde = kde = ml_collections.ConfigDict()
    # gaussian, exponential, tophat, epanechnikov or linear.
    kde.kernel = "gaussian"
    # For selection none; 0 takes Scott's rule.
    kde.bandwidth = 0.0
    config.isoforest = isoforest = ml_collections.ConfigDict()
    isoforest.n_trees = 100
    # Examples that each tree sees.
    isoforest.n_samples = 256

    config.data = data = ml_collections.ConfigDict()
    # digits, breast_cancer, mnist, fmnist, cifar10, an ODDS table, or the path of a
    # .npz, .csv or .mat file (see deepsad_jax/data/sources.py).
    data.name = "digits"
    # Folder looked in first, for NAME.npz, NAME.mat or NAME.csv; downloads go there.
    data.dir = ""
    # The class that is normal; all others are anomalous.
    data.normal_class = 0
    # The class of the labelled anomalies, and from how many classes they come: with 2
    # or more, these are drawn at random.
    data.known_outlier_class = 1
    data.n_known_outlier_classes = 1
    # Shares of the whole training set that are labelled normal and anomalous.
    data.ratio_known_normal = 0.0
    data.ratio_known_outlier = 0.01
    # Share of anomalies among the unlabelled.
    data.ratio_pollution = 0.0

    config.pretrain = pretrain = ml_collections.ConfigDict()
    # Whether the encoder starts from an autoencoder's, as in the paper.
    pretrain.enabled = True
    # Adam's learning rate, divided by 10 at each milestone (epochs counted from 0).
    pretrain.learning_rate = 1e-4
    pretrain.epochs = 150
    pretrain.milestones = (50,)
    # Batches are always full; the surplus of an epoch is dropped.
    pretrain.batch_size = 128
    # L2, added to the gradient as in torch.optim.Adam.
    pretrain.weight_decay = 0.5e-3

    # The same for the Deep SAD stage.
    config.train = train = ml_collections.ConfigDict()
    train.learning_rate = 1e-4
    train.epochs = 150
    train.milestones = (50,)
    train.batch_size = 128
    train.weight_decay = 0.5e-6
    return config
