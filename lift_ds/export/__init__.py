"""Checkpoints as Hugging Face folders: conversion, adapters, merging, adaptation, verification."""
