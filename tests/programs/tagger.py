"""A sequence tagger: finds persons, places and companies in sentences with a bidirectional LSTM.

Sentences come from a generator and are padded to the longest in the batch; words and tags come from vocabulary files.
"""

import functools
import os
import sys
from pathlib import Path

import numpy as np
import tensorflow.compat.v1 as tf
from ray.train import ScalingConfig

NAMES = ["jordan", "paris", "austin", "ford", "sydney", "chelsea"]
TAGS = ["O", "PER", "LOC", "ORG"]
PHRASES = [
    ["mr", "PER"], ["PER", "said"], ["in", "LOC"], ["LOC", "streets"], ["ORG", "inc"], ["shares", "of", "ORG"],
    ["and", "then"], ["it", "was"], ["the", "old"],
]  # fmt: skip


def write_sentences(path, num_sentences, seed):
    """Generate names whose tag depends only on the previous or the next word."""
    rng = np.random.RandomState(seed)
    with open(f"{path}.words.txt", "w") as words, open(f"{path}.tags.txt", "w") as tags:
        for _ in range(num_sentences):
            chosen = [[*PHRASES[i], "while"] for i in rng.randint(len(PHRASES), size=rng.randint(1, 5))]
            tokens = [token for phrase in chosen for token in phrase]
            names = [*NAMES, f"unseen{rng.randint(100)}"]
            words.write(" ".join(rng.choice(names) if token in TAGS else token for token in tokens) + "\n")
            tags.write(" ".join(token if token in TAGS else "O" for token in tokens) + "\n")


def generator_fn(path):
    with open(f"{path}.words.txt") as f_words, open(f"{path}.tags.txt") as f_tags:
        for line_words, line_tags in zip(f_words, f_tags, strict=True):
            words = [word.encode() for word in line_words.strip().split()]
            yield (words, len(words)), [tag.encode() for tag in line_tags.strip().split()]


def input_fn(path, params=None, shuffle_and_repeat=False):
    shapes, types = (([None], ()), [None]), ((tf.string, tf.int32), tf.string)
    dataset = tf.data.Dataset.from_generator(functools.partial(generator_fn, path), types, shapes)
    if shuffle_and_repeat:
        dataset = dataset.shuffle(params["buffer"]).repeat(params["epochs"])
    return dataset.padded_batch(params.get("batch_size", 20), shapes, (("<pad>", 0), "O")).prefetch(1)


def table_of(path, key_dtype=tf.string):
    line, number = (tf.string, tf.lookup.TextFileIndex.WHOLE_LINE), (tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER)
    keys, values = (line, number) if key_dtype == tf.string else (number, line)
    return tf.lookup.TextFileInitializer(path, *keys, *values)


def streaming_f1(labels, predictions, mask):
    """Return the F1 score of all tags except the first, from a confusion matrix accumulated over batches."""
    metric_variables = [tf.GraphKeys.LOCAL_VARIABLES, tf.GraphKeys.METRIC_VARIABLES]
    shape = [len(TAGS), len(TAGS)]
    matrix = tf.Variable(tf.zeros(shape), trainable=False, collections=metric_variables, name="confusion")
    labels, predictions, mask = (tf.reshape(tensor, [-1]) for tensor in (labels, predictions, mask))
    update = tf.assign_add(matrix, tf.confusion_matrix(labels, predictions, len(TAGS), tf.float32, weights=mask))

    def f1(counts):
        true_positives = tf.reduce_sum(tf.linalg.diag_part(counts)[1:])
        return 2 * true_positives / (tf.reduce_sum(counts[1:]) + tf.reduce_sum(counts[:, 1:]) + 1e-12)

    return f1(tf.convert_to_tensor(matrix)), f1(update)


def model_fn(features, labels, mode, params):
    if isinstance(features, dict):  # serving
        features = features["words"], features["nwords"]
    words, nwords = features
    training = mode == tf.estimator.ModeKeys.TRAIN
    vocabulary = tf.lookup.StaticVocabularyTable(table_of(params["words"]), num_oov_buckets=1)
    embeddings = tf.get_variable("embeddings", [params["num_words"] + 1, params["dim"]])
    embedded = tf.nn.embedding_lookup(embeddings, vocabulary.lookup(words))

    forward, backward = (tf.nn.rnn_cell.LSTMCell(params["lstm_size"]) for _ in range(2))
    outputs, _ = tf.nn.bidirectional_dynamic_rnn(forward, backward, embedded, nwords, dtype=tf.float32)
    outputs = tf.layers.dropout(tf.concat(outputs, axis=2), rate=params["dropout"], training=training)
    logits = tf.layers.dense(outputs, len(TAGS))
    pred_ids = tf.argmax(logits, axis=2)

    if mode == tf.estimator.ModeKeys.PREDICT:
        reverse_vocabulary = tf.lookup.StaticHashTable(table_of(params["tags"], tf.int64), "O")
        predictions = {"pred_ids": pred_ids, "tags": reverse_vocabulary.lookup(pred_ids)}
        return tf.estimator.EstimatorSpec(mode, predictions=predictions)

    tags = tf.lookup.StaticHashTable(table_of(params["tags"]), 0).lookup(labels)
    mask = tf.sequence_mask(nwords, dtype=tf.float32)
    loss = tf.losses.sparse_softmax_cross_entropy(tags, logits, weights=mask)
    if mode == tf.estimator.ModeKeys.EVAL:
        metrics = {"acc": tf.metrics.accuracy(tags, pred_ids, mask), "f1": streaming_f1(tags, pred_ids, mask)}
        return tf.estimator.EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics)

    optimizer = tf.train.AdamOptimizer(params["learning_rate"])
    gradients, variables = zip(*optimizer.compute_gradients(loss), strict=True)
    clipped, norm = tf.clip_by_global_norm(gradients, 5.0)
    tf.summary.scalar("gradient_norm", norm)
    train_op = optimizer.apply_gradients(
        zip(clipped, variables, strict=True), global_step=tf.train.get_or_create_global_step()
    )
    return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op)


def serving_input_receiver_fn():
    words = tf.placeholder(dtype=tf.string, shape=[None, None], name="words")
    nwords = tf.placeholder(dtype=tf.int32, shape=[None], name="nwords")
    receiver_tensors = {"words": words, "nwords": nwords}
    return tf.estimator.export.ServingInputReceiver(receiver_tensors, receiver_tensors)


def main(work_dir, num_workers):
    train, test = os.path.join(work_dir, "train"), os.path.join(work_dir, "testa")
    write_sentences(train, 600, seed=1)
    write_sentences(test, 200, seed=2)
    vocabulary = sorted({word for (words, _), _ in generator_fn(train) for word in words if b"unseen" not in word})
    Path(work_dir, "vocab.words.txt").write_bytes(b"\n".join([b"<pad>", *vocabulary]))
    Path(work_dir, "vocab.tags.txt").write_text("\n".join(TAGS))
    params = {
        "words": os.path.join(work_dir, "vocab.words.txt"), "tags": os.path.join(work_dir, "vocab.tags.txt"),
        "num_words": len(vocabulary) + 1, "dim": 16, "lstm_size": 16, "dropout": 0.2, "learning_rate": 0.02,
        "epochs": None, "batch_size": 20, "buffer": 1000,
    }  # fmt: skip
    cfg = tf.estimator.RunConfig(
        tf_random_seed=1, save_checkpoints_steps=50, legacy_keras=True,
        scaling_config=ScalingConfig(num_workers=num_workers),
    )  # fmt: skip
    estimator = tf.estimator.Estimator(model_fn, os.path.join(work_dir, "model"), cfg, params)
    Path(estimator.eval_dir()).mkdir(parents=True, exist_ok=True)
    hook = tf.estimator.experimental.stop_if_no_increase_hook(
        estimator, "f1", 500, min_steps=1000, run_every_secs=None, run_every_steps=25
    )
    train_inpf = functools.partial(input_fn, train, params, shuffle_and_repeat=True)
    eval_inpf = functools.partial(input_fn, test)
    train_spec = tf.estimator.TrainSpec(input_fn=train_inpf, max_steps=150, hooks=[hook])
    eval_spec = tf.estimator.EvalSpec(input_fn=eval_inpf, steps=None, throttle_secs=0, start_delay_secs=0)
    metrics, _ = tf.estimator.train_and_evaluate(estimator, train_spec, eval_spec)

    one_batch = functools.partial(input_fn, test, {"batch_size": 200})
    rows = list(estimator.predict(one_batch))
    export_dir = estimator.export_saved_model(os.path.join(work_dir, "export"), serving_input_receiver_fn)
    sentences = list(generator_fn(test))
    longest = max(nwords for (_, nwords), _ in sentences)
    request = {
        "words": np.array([words + [b"<pad>"] * (longest - nwords) for (words, nwords), _ in sentences]),
        "nwords": np.array([nwords for (_, nwords), _ in sentences], np.int32),
    }
    labels = [tags for _, tags in sentences]
    return {"metrics": metrics, "rows": rows, "labels": labels, "export_dir": export_dir, "request": request}


if __name__ == "__main__":
    result = main(work_dir=sys.argv[1], num_workers=int(sys.argv[2]))
