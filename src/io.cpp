// attzoo::compiled: safetensors files, checkpoints of several, their JSON and config.json, and
// weights by name.

#include <attzoo/io/checkpoint.ipp>
#include <attzoo/io/file.ipp>
#include <attzoo/io/json.ipp>
#include <attzoo/io/model_config.ipp>
#include <attzoo/io/name_map.ipp>
#include <attzoo/io/name_maps.ipp>
#include <attzoo/io/safetensors.ipp>
#include <attzoo/io/state_dict.ipp>
