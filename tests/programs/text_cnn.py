"""A text CNN: classifies film reviews as positive or negative, with words from a vocabulary file.

Tables look up words in the graph, so that the exported model takes raw text.
"""

import os
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from ray.train import ScalingConfig

GOOD = ["great", "moving", "clever", "funny", "superb"]
BAD = ["dull", "awful", "silly", "boring", "weak"]
FILLERS = ["the", "film", "plot", "was", "and", "a", "story", "acting", "is", "it", "very", "with"]
CLASSES = ["neg", "pos"]
NUM_OOV_BUCKETS = 1


def write_reviews(num_reviews, seed):
    """Generate reviews in which "not" before a word of praise or blame reverses its meaning."""
    rng = np.random.RandomState(seed)
    texts, labels = [], []
    for _ in range(num_reviews):
        label, negated = rng.randint(2), rng.randint(2)
        word = rng.choice(GOOD if label != negated else BAD)
        words = list(rng.choice([*FILLERS, f"zeugma{rng.randint(50)}"], size=rng.randint(3, 10)))
        at = rng.randint(len(words) + 1)
        words[at:at] = ["not", word] if negated else [word]
        if not negated:  # "not" may be elsewhere
            words.insert(0 if at > 0 else len(words), "not")
        texts.append(" ".join(words))
        labels.append(CLASSES[label])
    return np.array(texts), np.array(labels)


def cnn_model_fn(features, labels, mode, params):
    is_training = mode == tf.estimator.ModeKeys.TRAIN
    words = tf.string_split(features["text"])
    words = tf.sparse_tensor_to_dense(words, default_value="<pad>")
    vocabulary = tf.lookup.StaticVocabularyTable(
        tf.lookup.TextFileInitializer(
            params["vocabulary"], tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        NUM_OOV_BUCKETS,
    )  # fmt: skip
    ids = vocabulary.lookup(words)
    embeddings = tf.get_variable("embeddings", [params["vocab_size"] + NUM_OOV_BUCKETS, params["embedding_size"]])
    embedded = tf.nn.embedding_lookup(embeddings, ids)
    embedded *= tf.cast(tf.not_equal(words, "<pad>"), tf.float32)[:, :, tf.newaxis]

    pooled = []
    for size in params["filter_sizes"]:
        with tf.variable_scope(f"conv_{size}"):
            filters = tf.get_variable("filters", [size, params["embedding_size"], params["num_filters"]])
            bias = tf.get_variable("bias", [params["num_filters"]], initializer=tf.constant_initializer(0.1))
            convolved = tf.nn.relu(tf.nn.conv1d(embedded, filters, stride=1, padding="SAME") + bias)
            pooled.append(tf.reduce_max(convolved, axis=1))
    hidden = tf.concat(pooled, axis=1)
    if is_training:
        hidden = tf.nn.dropout(hidden, keep_prob=params["keep_prob"])
    kernel = tf.get_variable("kernel", [len(pooled) * params["num_filters"], len(CLASSES)])
    logits = tf.matmul(hidden, kernel)

    names = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.range(2), CLASSES), "unknown")
    best = tf.argmax(logits, axis=1, output_type=tf.int32)
    predictions = {"class": names.lookup(best), "probabilities": tf.nn.softmax(logits)}
    if mode == tf.estimator.ModeKeys.PREDICT:
        return tf.estimator.EstimatorSpec(mode=mode, predictions=predictions)

    targets = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(CLASSES, tf.range(2)), -1).lookup(labels)
    loss = tf.losses.sparse_softmax_cross_entropy(targets, logits)
    accuracy = tf.metrics.accuracy(targets, best)
    if mode == tf.estimator.ModeKeys.EVAL:
        metrics = {"accuracy": accuracy, "f1_precision": tf.metrics.precision(targets, best)}
        return tf.estimator.EstimatorSpec(mode=mode, loss=loss, eval_metric_ops=metrics)

    tf.identity(accuracy[1], name="train_accuracy")
    tf.summary.scalar("train_accuracy", accuracy[1])
    tf.summary.histogram("embeddings", embeddings)
    train_op = tf.train.AdamOptimizer(params["learning_rate"]).minimize(loss, tf.train.get_or_create_global_step())
    hook = tf.train.LoggingTensorHook({"accuracy": "train_accuracy"}, every_n_iter=50)
    return tf.estimator.EstimatorSpec(mode=mode, loss=loss, train_op=train_op, training_hooks=[hook])


def make_input_fn(texts, labels, batch_size, training):
    def input_fn(config):
        dataset = tf.data.Dataset.from_tensor_slices(({"text": texts}, labels))
        if training:
            dataset = dataset.shard(config.num_worker_replicas, config.task_id)
            dataset = dataset.shuffle(len(texts)).repeat()
        return tf.data.make_one_shot_iterator(dataset.batch(batch_size)).get_next()

    return input_fn


def serving_input_receiver_fn():
    text = tf.placeholder(tf.string, shape=[None], name="text")
    return tf.estimator.export.ServingInputReceiver({"text": text}, {"text": text})


def main(work_dir, num_workers):
    train_texts, train_labels = write_reviews(2000, seed=1)
    test_texts, test_labels = write_reviews(600, seed=2)
    vocabulary = os.path.join(work_dir, "vocabulary.txt")
    words = ["<pad>", *sorted({word for text in train_texts for word in text.split() if "zeugma" not in word})]
    with open(vocabulary, "w") as lines:
        lines.write("\n".join(words))

    params = {
        "vocabulary": vocabulary, "vocab_size": len(words), "embedding_size": 16, "filter_sizes": [2, 3, 4],
        "num_filters": 8, "keep_prob": 0.7, "learning_rate": 0.01,
    }  # fmt: skip
    config = tf.estimator.RunConfig(
        tf_random_seed=1, save_summary_steps=50, scaling_config=ScalingConfig(num_workers=num_workers)
    )
    estimator = tf.estimator.Estimator(cnn_model_fn, os.path.join(work_dir, "model"), config, params)
    test_input_fn = make_input_fn(test_texts, test_labels, 100, training=False)
    estimator.train(input_fn=make_input_fn(train_texts, train_labels, 64, training=True), steps=200)
    metrics = estimator.evaluate(input_fn=test_input_fn)
    rows = list(estimator.predict(input_fn=test_input_fn))
    export_dir = estimator.export_savedmodel(
        os.path.join(work_dir, "export"), serving_input_receiver_fn, assets_extra={"words.txt": vocabulary}
    )
    request = {"text": test_texts}
    return {"metrics": metrics, "rows": rows, "labels": test_labels, "export_dir": export_dir, "request": request}


if __name__ == "__main__":
    result = main(work_dir=sys.argv[1], num_workers=int(sys.argv[2]))
