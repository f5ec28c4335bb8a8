#pragma once
/// \file
/// What nearly every file of attzoo's own build includes, precompiled. Not torch/torch.h: templates
/// that a precompiled header leaves open are instantiated anew in every file, for it 9 s each time.

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>
