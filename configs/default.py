"""Every field of an experiment, with its default; the other configs are small
deltas."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # What is trained. With labels: deep_sad, m2 and m1_m2 (generative models),
    # supervised (a classifier), ssad. Without: deep_svdd, autoencoder, vae, ocsvm, kde,
    # isoforest.
    config.method = "deep_sad"
    # Whether a shallow baseline works on the codes of an autoencoder (trained as
    # `pretrain` says, or that of load_model) instead of the features.
    config.hybrid = False
    # A name of deepsad_jax.networks.ARCHITECTURES; "" chooses by the shape of the data.
    config.network = ""
    # Decides split, draw, initial weights and shuffling.
    config.seed = 0
    # Weight of the labelled examples in the losses of deep_sad, > 0.
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
    config.m2 = m2 = ml_collections.ConfigDict()
    # Weight of the classification of labelled examples in m2 and m1_m2, >= 0.
    m2.alpha = 0.1
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

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    # The state of the training is saved after at least so many epochs and seconds, from
    # which the same command goes on; and how many checkpoints are kept of each stage.
    checkpoint.epochs = 10
    checkpoint.seconds = 10.0
    checkpoint.keep = 2

    config.pretrain = pretrain = ml_collections.ConfigDict()
    # Whether the encoder starts from an autoencoder's, as in the paper. The methods
    # autoencoder and vae, and the first half of m1_m2, are trained as this stage says.
    pretrain.enabled = True
    # Adam's learning rate, divided by 10 at each milestone (epochs counted from 0).
    pretrain.learning_rate = 1e-4
    pretrain.epochs = 150
    pretrain.milestones = (50,)
    # Batches are always full; the surplus of an epoch is dropped.
    pretrain.batch_size = 128
    # L2, added to the gradient as in torch.optim.Adam.
    pretrain.weight_decay = 0.5e-3
    # When the loss is not finite: stop, or rollback to the state before that epoch and
    # go on with a tenth of the learning rate, at most five times.
    pretrain.on_divergence = "stop"

    # The same for the stage of the method itself.
    config.train = train = ml_collections.ConfigDict()
    train.learning_rate = 1e-4
    train.epochs = 150
    train.milestones = (50,)
    train.batch_size = 128
    train.weight_decay = 0.5e-6
    train.on_divergence = "stop"
    # Of deep_sad: deep_sad, hypersphere or deviation; of deep_svdd: one_class or
    # soft_boundary; "" is the first of these.
    train.loss = ""
    # Share of the examples outside the soft boundary, in (0, 1).
    train.nu = 0.1
    # Whether metrics.jsonl tells of deep_sad and deep_svdd, for known normal,
    # unlabelled and known anomalous examples, the mean squared distance to the centre
    # and the log-determinant of the embeddings' covariance (section 3 of the paper).
    train.record_groups = True
    return config
