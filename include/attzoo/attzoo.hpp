#pragma once
/// \file
/// All of attzoo: one line for each mechanism and the version, then what they stand on.

#include <attzoo/alibi.hpp>
#include <attzoo/block.hpp>
#include <attzoo/combined.hpp>
#include <attzoo/dilated.hpp>
#include <attzoo/gated.hpp>
#include <attzoo/grouped.hpp>
#include <attzoo/linear.hpp>
#include <attzoo/local.hpp>
#include <attzoo/longformer.hpp>
#include <attzoo/lsh.hpp>
#include <attzoo/multi_head.hpp>
#include <attzoo/vanilla.hpp>
#include <attzoo/version.hpp>

#include <attzoo/functional/apply_linear.hpp>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/debug.hpp>
#include <attzoo/functional/linear_attention.hpp>
#include <attzoo/functional/mask_tensors.hpp>
#include <attzoo/functional/modifiers.hpp>
#include <attzoo/functional/rope.hpp>
#include <attzoo/functional/sdpa.hpp>
#include <attzoo/io/checkpoint.hpp>
#include <attzoo/io/model_config.hpp>
#include <attzoo/io/name_maps.hpp>
#include <attzoo/io/safetensors.hpp>
#include <attzoo/io/state_dict.hpp>
#include <attzoo/module/any_attention.hpp>
#include <attzoo/module/decoder_block.hpp>
#include <attzoo/module/output_of.hpp>
#include <attzoo/module/rms_norm.hpp>
#include <attzoo/module/stack.hpp>
#include <attzoo/module/torch_masks.hpp>
#include <attzoo/module/transformer.hpp>
