"""The methods AnchorLwF is compared with that are not trained by our own trainer."""
