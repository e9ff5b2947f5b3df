"""Accuracy of scikit-learn's bag-of-words classifiers on the data of text-sentiment.

    python benchmarks/text_baselines.py PATH/rt_polarity.tsv

TF-IDF of words and pairs of words, with logistic regression and with naive Bayes; their one
hyperparameter is chosen on the recipe's validation texts, and the test set is used once.
"""

import json
import sys

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB

from plusx.recipe import load_recipe
from plusx.run.build import open_split


def main(path: str) -> None:
    recipe = load_recipe("text-sentiment", [f"data.path={path}"])
    train, validation, test = (open_split(recipe, name) for name in ("train", "validation", "test"))
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    inputs = vectors.fit_transform(train.items.texts)
    rows = []
    for name, make, values in (
        ("logistic regression", lambda c: LogisticRegression(C=c, max_iter=1000), (1, 3, 10, 30)),
        ("naive Bayes", lambda alpha: MultinomialNB(alpha=alpha), (0.1, 0.3, 1.0, 3.0)),
    ):
        models = [make(value).fit(inputs, train.labels) for value in values]
        held_out = vectors.transform(validation.items.texts)
        accuracies = [model.score(held_out, validation.labels) for model in models]
        best = max(range(len(models)), key=accuracies.__getitem__)
        accuracy = models[best].score(vectors.transform(test.items.texts), test.labels)
        rows.append({"model": f"TF-IDF, {name}", "validation": accuracies[best],
                     "test": accuracy, "hyperparameter": values[best]})  # fmt: skip
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
