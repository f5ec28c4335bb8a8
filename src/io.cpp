// attzoo::compiled: safetensors files and their JSON.

#include <attzoo/io/file.ipp>
#include <attzoo/io/json.ipp>
#include <attzoo/io/safetensors.ipp>
