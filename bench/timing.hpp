#pragma once
// Time on a device.

#include <c10/core/Device.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <chrono>
#include <functional>

namespace bench {

/// Seconds that `f` takes: on CPU by the clock, elsewhere between two events on the device.
inline double seconds(c10::Device device, const std::function<void()>& f) {
  if (device.is_cpu()) {
    const auto start = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  const auto stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  c10::Event start(device.type(), c10::EventFlag::BACKEND_DEFAULT);
  c10::Event end(device.type(), c10::EventFlag::BACKEND_DEFAULT);
  start.record(stream);
  f();
  end.record(stream);
  end.synchronize();
  return start.elapsedTime(end) / 1e3;
}

}  // namespace bench
