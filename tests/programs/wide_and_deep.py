"""Wide and deep: predicts whether a person earns more than 50,000, from CSV census files.

Linear weights of crossed columns and a network over embeddings, each with its own optimizer.
"""

import os
import sys

import numpy as np
import tensorflow as tf
from ray.train import ScalingConfig

COLUMNS = ["age", "education", "occupation", "hours", "income"]
DEFAULTS = [[0.0], [""], [""], [0.0], [""]]
EDUCATION = ["School", "College", "Bachelors", "Masters"]
OCCUPATION = ["Farming", "Sales", "Tech", "Exec", "Craft", "Other"]


def write_census(path, num_rows, seed):
    rng = np.random.RandomState(seed)
    # Some education levels raise income only in some occupations.
    pays = np.random.RandomState(5).choice([-1.6, 1.6], size=(len(EDUCATION), len(OCCUPATION)))
    with open(path, "w") as census:
        for _ in range(num_rows):
            age, hours = rng.randint(18, 80), rng.randint(10, 60)
            education, occupation = rng.randint(len(EDUCATION)), rng.randint(len(OCCUPATION))
            score = pays[education, occupation] + 1.2 * (35 <= age < 60) + 0.06 * (hours - 40)
            rich = rng.uniform() < 1 / (1 + np.exp(-2 * score))
            row = [age, EDUCATION[education], OCCUPATION[occupation], hours, ">50K" if rich else "<=50K"]
            census.write(",".join(map(str, row)) + "\n")
    return path


def build_columns():
    age = tf.feature_column.numeric_column("age")
    hours = tf.feature_column.numeric_column("hours", normalizer_fn=lambda x: (x - 35.0) / 15.0)
    ages = tf.feature_column.bucketized_column(age, [25, 35, 45, 60])
    education = tf.feature_column.categorical_column_with_vocabulary_list("education", EDUCATION)
    occupation = tf.feature_column.categorical_column_with_hash_bucket("occupation", 100)
    wide = [education, occupation, tf.feature_column.crossed_column(["education", "occupation"], 1000)]
    deep = [
        hours,
        ages,
        tf.feature_column.indicator_column(education),
        tf.feature_column.embedding_column(occupation, dimension=4),
    ]
    return wide, deep


def model_fn(features, labels, mode, params):
    wide, deep = build_columns()
    with tf.compat.v1.variable_scope("dnn"):
        partitioner = tf.compat.v1.min_max_variable_partitioner(max_partitions=2, min_slice_size=512)
        with tf.compat.v1.variable_scope("input_from_feature_columns", partitioner=partitioner):
            net = tf.compat.v1.feature_column.input_layer(features, deep)
        for i, units in enumerate([*params["hidden_units"], 1]):
            with tf.compat.v1.variable_scope(f"hiddenlayer_{i}"):
                kernel = tf.compat.v1.get_variable("kernel", [net.shape[1], units])
                bias = tf.compat.v1.get_variable("bias", [units], initializer=tf.compat.v1.zeros_initializer())
                net = tf.matmul(net if i == 0 else tf.nn.relu(net), kernel) + bias
            tf.compat.v1.summary.scalar(f"fraction_of_zero_values_{i}", tf.nn.zero_fraction(net))
    with tf.compat.v1.variable_scope("linear"):
        logits = net + tf.compat.v1.feature_column.linear_model(features, wide)

    probability = tf.sigmoid(logits)
    probabilities = tf.concat([1.0 - probability, probability], axis=1)
    predictions = {"probabilities": probabilities, "class_ids": tf.argmax(probabilities, axis=1)}
    export_outputs = {
        "serving_default": tf.estimator.export.ClassificationOutput(scores=probabilities),
        "regression": tf.estimator.export.RegressionOutput(value=probability),
        "predict": tf.estimator.export.PredictOutput(predictions),
    }
    loss = train_op = metrics = None
    if mode != tf.estimator.ModeKeys.PREDICT:
        loss = tf.compat.v1.losses.sigmoid_cross_entropy(labels, logits)
        metrics = {
            "accuracy": tf.compat.v1.metrics.accuracy(labels, predictions["class_ids"][:, tf.newaxis]),
            "auc": tf.compat.v1.metrics.auc(labels, probability, num_thresholds=2000),
            "label/mean": tf.compat.v1.metrics.mean(labels),
        }
    if mode == tf.estimator.ModeKeys.TRAIN:
        trainable = tf.compat.v1.GraphKeys.TRAINABLE_VARIABLES
        dnn, linear = (tf.compat.v1.get_collection(trainable, scope) for scope in ("dnn", "linear"))
        train_ops = [
            tf.compat.v1.train.AdagradOptimizer(params["dnn_rate"]).minimize(loss, var_list=dnn),
            tf.compat.v1.train.FtrlOptimizer(params["linear_rate"]).minimize(loss, var_list=linear),
        ]
        with tf.control_dependencies([tf.group(*train_ops)]):
            train_op = tf.compat.v1.assign_add(tf.compat.v1.train.get_global_step(), 1).op
    return tf.estimator.EstimatorSpec(
        mode, predictions, loss, train_op, eval_metric_ops=metrics, export_outputs=export_outputs
    )


def input_fn(data_file, num_epochs, shuffle, batch_size):
    def parse_csv(lines):
        features = dict(zip(COLUMNS, tf.io.decode_csv(lines, DEFAULTS), strict=True))
        income = features.pop("income")
        return features, tf.cast(tf.equal(income, ">50K"), tf.float32)[:, tf.newaxis]

    dataset = tf.data.TextLineDataset(data_file)
    if shuffle:
        dataset = dataset.shuffle(1000, seed=1)
    return dataset.repeat(num_epochs).batch(batch_size).map(parse_csv, num_parallel_calls=2).prefetch(1)


def main(work_dir, num_workers):
    train_file = write_census(os.path.join(work_dir, "adult.data"), 4000, seed=1)
    test_file = write_census(os.path.join(work_dir, "adult.test"), 1000, seed=2)
    config = tf.estimator.RunConfig(
        model_dir=os.path.join(work_dir, "model"),
        tf_random_seed=1,
        save_checkpoints_steps=100,
        scaling_config=ScalingConfig(num_workers=num_workers),
    )
    params = {"hidden_units": [32, 16], "dnn_rate": 0.05, "linear_rate": 0.2}
    estimator = tf.estimator.Estimator(model_fn, config=config, params=params)

    example_spec = tf.feature_column.make_parse_example_spec([*build_columns()[0], *build_columns()[1]])
    serving_fn = tf.estimator.export.build_parsing_serving_input_receiver_fn(example_spec)
    exporter = tf.estimator.FinalExporter("census", serving_fn)
    train_spec = tf.estimator.TrainSpec(lambda: input_fn(train_file, None, True, 64), max_steps=200)
    eval_spec = tf.estimator.EvalSpec(lambda: input_fn(test_file, 1, False, 100), steps=None, exporters=exporter)
    metrics, (export_dir,) = tf.estimator.train_and_evaluate(estimator, train_spec, eval_spec)
    rows = list(estimator.predict(lambda: input_fn(test_file, 1, False, 100)))

    with open(test_file) as census:
        people = [line.strip().split(",") for line in census]
    labels = np.array([person[-1] == ">50K" for person in people])
    request = {"examples": [serialized(person) for person in people]}
    return {"metrics": metrics, "rows": rows, "labels": labels, "export_dir": export_dir, "request": request}


def serialized(person):
    feature = {}
    for name, default, value in zip(COLUMNS[:-1], DEFAULTS, person, strict=False):
        if default == [""]:
            feature[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))
        else:
            feature[name] = tf.train.Feature(float_list=tf.train.FloatList(value=[float(value)]))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


if __name__ == "__main__":
    result = main(work_dir=sys.argv[1], num_workers=int(sys.argv[2]))
