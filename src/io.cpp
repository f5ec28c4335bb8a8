// attzoo::compiled: safetensors files, checkpoints of several, their JSON, and weights by name.

#include <attzoo/io/checkpoint.ipp>
#include <attzoo/io/copy_state.ipp>
#include <attzoo/io/file.ipp>
#include <attzoo/io/json.ipp>
#include <attzoo/io/mapped_file.ipp>
#include <attzoo/io/name_map.ipp>
#include <attzoo/io/name_maps.ipp>
#include <attzoo/io/safetensors.ipp>
#include <attzoo/io/safetensors_header.ipp>
