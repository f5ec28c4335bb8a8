// attzoo::compiled: safetensors files, checkpoints of several, their JSON and config.json, weights
// by name, and adapters.

#define ATTZOO_DEFINE_IO

#include <attzoo/io/adapter.hpp>
#include <attzoo/io/checkpoint.hpp>
#include <attzoo/io/file.hpp>
#include <attzoo/io/json.hpp>
#include <attzoo/io/latent_name_maps.hpp>
#include <attzoo/io/model_config.hpp>
#include <attzoo/io/name_map.hpp>
#include <attzoo/io/name_maps.hpp>
#include <attzoo/io/recurrent_name_maps.hpp>
#include <attzoo/io/safetensors.hpp>
#include <attzoo/io/state_dict.hpp>
