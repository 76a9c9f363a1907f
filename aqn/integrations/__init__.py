"""Noise and dead zone inside the engines that people train and serve with."""
