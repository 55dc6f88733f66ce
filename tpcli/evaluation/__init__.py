"""Accuracy and the other measures of one model on one data set."""
