#!/usr/bin/env bash
# Styles from the training set, then photographs of the test set in these styles.
set -e
cd "$(dirname "$0")/.."
python encode_features.py --name label2city_512p_feat
exec python test.py --name label2city_512p_feat --instance_feat "$@"
