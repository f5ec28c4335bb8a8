// attzoo::compiled: the functions, what they ask of their tensors, mask tensors, rotary positions
// and linear attention.

#define ATTZOO_DEFINE_FUNCTIONAL

#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/checks.hpp>
#include <attzoo/functional/chosen_keys.hpp>
#include <attzoo/functional/cuda_source.hpp>
#include <attzoo/functional/each_document.hpp>
#include <attzoo/functional/indexer.hpp>
#include <attzoo/functional/linear_attention.hpp>
#include <attzoo/functional/mask_tensors.hpp>
#include <attzoo/functional/masks.hpp>
#include <attzoo/functional/native_sparse.hpp>
#include <attzoo/functional/neighborhood_keys.hpp>
#include <attzoo/functional/nystrom_attention.hpp>
#include <attzoo/functional/performer_attention.hpp>
#include <attzoo/functional/recurrence.hpp>
#include <attzoo/functional/rope.hpp>
#include <attzoo/functional/scores.hpp>
#include <attzoo/functional/sdpa.hpp>
#include <attzoo/functional/short_convolution.hpp>
#include <attzoo/functional/sorted_blocks.hpp>
